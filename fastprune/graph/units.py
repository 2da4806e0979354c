"""Codes: structures as one small integer a unit, a unit being the groups it governs."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import PlanError
from fastprune.graph.channel_graph import ChannelGraph
from fastprune.records import Widths

__all__ = [
    "FULL",
    "Following",
    "Units",
    "map_sizes",
    "parse_code",
    "units_by_group",
    "units_by_name",
    "units_by_stage",
]

FULL = 10
"""The integer that keeps a unit whole; k keeps k tenths of it."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class Following(NamedTuple):
    """A group whose width is ``fixed + Σ multiple * width`` of other groups.

    Attributes:
        group: the group that follows.
        fixed: what does not change.
        terms: (group, multiple): groups of units, groups that follow and were named before, or
            groups of no unit, which stay whole.
    """

    group: str
    fixed: int
    terms: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Units:
    """Which channel groups each integer of a code governs.

    The integer k, from 1 to 10, keeps ``C * k // 10`` of a group's C channels, and at least one.

    Attributes:
        names: of the units, in the order of a code.
        groups: of each unit, the channel groups that its integer governs.
        following: groups whose width follows from others'.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    following: tuple[Following, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.groups):
            raise ValueError(
                f"units: expected groups for each of {len(self.names)} names, got "
                f"{len(self.groups)}"
            )
        governed = [name for unit in self.groups for name in unit]
        governed += [row.group for row in self.following]
        twice = sorted({name for name in governed if governed.count(name) > 1})
        if twice:
            raise ValueError(f"units: {twice[0]!r} gets its width twice; expected once")

    def __len__(self) -> int:
        return len(self.names)

    def check(self, code: Sequence[int]) -> None:
        """Raises PlanError unless ``code`` has one whole number from 1 to 10 for every unit."""
        if len(code) != len(self.names):
            raise PlanError(
                f"code: expected {len(self.names)} whole numbers from 1 to {FULL}, one a unit; "
                f"got {len(code)}"
            )
        for position, (name, k) in enumerate(zip(self.names, code, strict=True), start=1):
            if not _is_integer(k) or not 1 <= k <= FULL:
                raise PlanError(
                    f"code: number {position} ({name}): expected a whole number from 1 to {FULL}, "
                    f"got {k!r}"
                )

    def widths(self, graph: ChannelGraph, code: Sequence[int]) -> Widths:
        """Widths of the groups that the code governs, directly or not, in the graph's order.

        Args:
            graph: the graph that the units were made for.
            code: one integer a unit.

        Raises:
            PlanError: a code of another length or out of range, or units of another network.
        """
        self.check(code)
        row = self.width_matrix(graph, np.array([code], np.int64).reshape(1, -1))[0].tolist()
        governed = {name for unit in self.groups for name in unit}
        governed |= {row.group for row in self.following}
        return {
            group.name: width
            for group, width in zip(graph.groups, row, strict=True)
            if group.name in governed
        }

    def width_matrix(self, graph: ChannelGraph, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Widths of many codes, for ``graph.costs``.

        Args:
            graph: the graph that the units were made for.
            codes: integers ``[K, units]`` from 1 to 10.

        Returns:
            int64 ``[K, groups]`` in the order of ``graph.groups``; groups of no unit are whole.

        Raises:
            ValueError: codes of another shape or out of range.
            PlanError: units of another network.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(self.names) or codes.dtype.kind not in "iu":
            raise ValueError(
                f"codes: expected integers [K, {len(self.names)}], got {codes.dtype} "
                f"{list(codes.shape)}"
            )
        if ((codes < 1) | (codes > FULL)).any():
            raise ValueError(f"codes: expected each from 1 to {FULL}")
        codes = codes.astype(np.int64)
        column = {group.name: i for i, group in enumerate(graph.groups)}
        full = np.array([group.channels for group in graph.groups], np.int64)
        widths: NDArray[np.int64] = np.tile(full, (len(codes), 1))
        for unit, names in enumerate(self.groups):
            at = [column[graph.group(name).name] for name in names]
            widths[:, at] = np.maximum(full[at] * codes[:, unit, None] // FULL, 1)
        for row in self.following:
            total = np.full(len(codes), row.fixed, np.int64)
            for name, multiple in row.terms:
                total += multiple * widths[:, column[graph.group(name).name]]
            widths[:, column[graph.group(row.group).name]] = total
        return widths


def parse_code(given: Any) -> tuple[int, ...]:
    """The code in a text, separated by commas or spaces, in a list of integers, or one integer.

    Raises:
        PlanError: something in it is not a whole number. Length and range are for
            :meth:`Units.check`.
    """
    if isinstance(given, str):
        items: list[Any] = re.split(r"\s*,\s*|\s+", given.strip())
        wrong = [item for item in items if not _INTEGER.fullmatch(item)]
    elif isinstance(given, (list, tuple)):
        items = list(given)
        wrong = [item for item in items if not _is_integer(item)]
    elif _is_integer(given):
        # What YAML makes of the code of a network with one unit.
        items, wrong = [given], []
    else:
        raise PlanError(f"code: expected whole numbers such as '5 5 6', got {given!r:.80}")
    if wrong or not items:
        got = repr(wrong[0])[:80] if wrong else "none"
        raise PlanError(f"code: expected whole numbers such as '5 5 6', got {got}")
    return tuple(int(item) for item in items)


def units_by_group(graph: ChannelGraph) -> Units:
    """One unit a channel group, called as the group."""
    names = tuple(group.name for group in graph.groups)
    return Units(names, tuple((name,) for name in names))


def units_by_stage(graph: ChannelGraph) -> Units:
    """One unit for all groups whose feature maps have the same size, called ``32x32``.

    A group whose maps have no known size, since no layer makes it, is a unit of its own.
    """
    sizes = map_sizes(graph)
    return _tied({group.name: sizes.get(group.name, group.name) for group in graph.groups})


def units_by_name(
    graph: ChannelGraph, pattern: str, *, following: tuple[Following, ...] = ()
) -> Units:
    """One unit for all groups whose layers' names match with the same first capture.

    Args:
        pattern: regular expression for a whole layer name, ``(layer[0-9]+[.][0-9]+)[.]conv1``;
            what its first group captures is the unit's name. Groups that do not match are of no
            unit.
        following: as in :class:`Units`.
    """
    found = {}
    for group in graph.groups:
        match = re.fullmatch(pattern, _layer_name(group.name))
        if match:
            found[group.name] = match[1]
    return _tied(found, following)


def map_sizes(graph: ChannelGraph) -> dict[str, str]:
    """The size of the feature maps of every group that a layer makes: ``32x32``, or ``1x1``."""
    by_layer = {}
    for layer in graph.layers:
        shape = graph.program.ops[layer.op].outputs[0].shape
        # A linear layer's channels are the last axis, a convolution's the second.
        size = shape[1:-1] if layer.kind == "linear" else shape[2:]
        by_layer[layer.weight.rpartition(".")[0]] = "x".join(str(n) for n in size) or "1x1"
    return {
        group.name: by_layer[_layer_name(group.name)]
        for group in graph.groups
        if _layer_name(group.name) in by_layer
    }


def _tied(unit_of: dict[str, str], following: tuple[Following, ...] = ()) -> Units:
    """Units from the unit of each group, in the order of their first groups."""
    units: dict[str, list[str]] = {}
    for group, unit in unit_of.items():
        units.setdefault(unit, []).append(group)
    return Units(tuple(units), tuple(tuple(groups) for groups in units.values()), following)


def _layer_name(group: str) -> str:
    """The layer that makes a group: its name without the number that tells several apart."""
    return re.sub(r":\d+$", "", group)


def _is_integer(item: Any) -> bool:
    if isinstance(item, bool):
        return False
    try:
        operator.index(item)
    except TypeError:
        return False
    return True
