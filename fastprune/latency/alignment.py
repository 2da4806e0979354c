"""Which multiples of channels a device likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fastprune.graph import ChannelGraph
from fastprune.latency.cache import times_of
from fastprune.latency.calls import Call, calls_of, matrix_calls
from fastprune.latency.clock import Clock
from fastprune.latency.table import Points
from fastprune.training.progress import Progress

__all__ = ["Alignment", "alignment_of", "preferred_multiple", "tested_widths"]

MULTIPLES = (1, 2, 4, 8, 16, 32)
_LOW, _HIGH = 64, 128
"""Widths that every device likes; between them the others are held to a straight line."""

WASTE = 0.1
"""Share of time by which a multiple may be worse than the best. Repeated measurements differ by 2
to 3 %; a block of 16 makes a difference of 20 to 60 %."""

_KINDS = 2


class Alignment(NamedTuple):
    """What was chosen for a network and why.

    Attributes:
        round_to: the multiple.
        liked: the one that the device likes; larger where the narrowest group holds it back.
        waste: of each of `MULTIPLES`, how much longer layers take whose widths are multiples of
            it and of none larger, as a share; empty where there is no such layer.
    """

    round_to: int
    liked: int
    waste: tuple[float, ...]


def tested_widths() -> tuple[int, ...]:
    """64, 128, and for each multiple the first and the last width between them that is a multiple
    of it and of none larger.
    """
    widths = {_LOW, _HIGH}
    for multiple in MULTIPLES:
        widths |= {_LOW + multiple, _HIGH - multiple}
    return tuple(sorted(widths))


def preferred_multiple(times: Sequence[Sequence[float]]) -> tuple[int, tuple[float, ...]]:
    """The smallest multiple that is nearly as good as the best, and the waste of each.

    A layer of 64 < w < 128 channels is worth what lies on the straight line over w² between the
    times of 64 and of 128; what it takes beyond that is wasted. 64 itself wastes nothing.

    Args:
        times: for each layer, of `tested_widths`.

    Returns:
        The smallest of `MULTIPLES` and 64 whose mean waste is at most 0.1 more than the least;
        and the means.
    """
    waste = []
    for multiple in MULTIPLES:
        found = []
        for row in times:
            at = dict(zip(tested_widths(), row, strict=True))
            for width in {_LOW + multiple, _HIGH - multiple}:
                share = (width**2 - _LOW**2) / (_HIGH**2 - _LOW**2)
                found.append(at[width] / (at[_LOW] + share * (at[_HIGH] - at[_LOW])) - 1)
        waste.append(sum(found) / len(found))
    most = min(0.0, *waste) + WASTE
    good = (multiple for multiple, share in zip(MULTIPLES, waste, strict=True) if share <= most)
    return next(good, _LOW), tuple(round(share, 4) for share in waste)


def alignment_of(graph: ChannelGraph, clock: Clock, progress: Progress) -> Alignment:
    """The multiple for a network: the device's, by its two layers with the most MACs, but at most
    half of the narrowest group, so that every group can still be pruned.

    Args:
        graph: of the network.
        clock: what measures.
        progress: shows the measuring.
    """
    heavy = _heaviest(graph, clock.setting.batch_size)
    points: Points = tuple((width, width) for width in tested_widths())
    if not heavy:
        return Alignment(1, 1, ())
    times = times_of([(call, points) for call in heavy], clock, progress)
    liked, waste = preferred_multiple(times)
    narrowest = min((group.channels for group in graph.groups), default=1)
    most = max(1, 1 << max(0, (narrowest // 2).bit_length() - 1))
    return Alignment(min(liked, most), liked, waste)


def _heaviest(graph: ChannelGraph, batch: int) -> list[Call]:
    """The layers that take the most MACs, all of a kind together, as if of 128 channels."""
    macs = {
        layer.op: layer.positions * layer.kernel * layer.output_width * layer.input_width
        for layer in graph.layers
    }
    total: dict[Call, int] = {}
    first: dict[object, Call] = {}
    for call in matrix_calls(calls_of(graph, batch)):
        same = first.setdefault(call.kind, call)
        total[same] = total.get(same, 0) + macs[call.op.index]
    heavy = sorted(total, key=lambda call: -total[call])[:_KINDS]
    return [_widened(call) for call in heavy]


def _widened(call: Call) -> Call:
    kind = call.kind
    shapes = tuple(kind.sizes(_HIGH, _HIGH))
    return replace(call, kind=replace(kind, shapes=shapes, inputs=_HIGH, outputs=_HIGH))
