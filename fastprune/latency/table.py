"""Measured milliseconds of a layer over its widths, and what they say between the measured ones.

Widths cost in steps: an AVX-512 convolution works on blocks of 16 channels, so that 17 channels
take as long as 32 and twice as long as 16. Straight lines between round widths would miss that by
half. So of each block that is measured three places are: its first width, its last but one and its
end, and blocks between two measured ones are filled in place by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "LayerKind",
    "LayerTable",
    "Points",
    "axis_widths",
    "coarse_widths",
    "points_of",
]

Floats = NDArray[np.float64]

BLOCK = 16
"""Channels of a block: the widest vector of a CPU in fp32; tensor cores want multiples of 8."""

_FIRST = (1, 2, 4, 8, 15, 16)
"""Widths of the first block, where times fall least regularly."""
_PLACES = (1, 8, 15, 16)
"""Widths of a later block, from its beginning."""

Points = tuple[tuple[int, int], ...]
"""Pairs of an input and an output width."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Calls that take the same time at the same widths.

    Attributes:
        op: the function's name: ``conv2d``.
        shapes: of its tensors in the unpruned network, the batch included.
        dims: for each of these sizes ``i`` where it grows with the input width, ``o`` with the
            output width, else ``""``.
        detail: its other arguments, as text.
        inputs, outputs: the unpruned widths; of a call with one width only ``outputs`` counts and
            ``inputs`` is 0; where one of a layer's two is fixed, it is 0 as well.
        unit: channels that go together, of grouped convolutions.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    dims: tuple[tuple[str, ...], ...]
    detail: str
    inputs: int
    outputs: int
    unit: int = 1

    def sizes(self, inputs: int, outputs: int) -> list[tuple[int, ...]]:
        """The shapes of its tensors at other widths."""
        return [
            tuple(self._size(*row, inputs, outputs) for row in zip(shape, dims, strict=True))
            for shape, dims in zip(self.shapes, self.dims, strict=True)
        ]

    def _size(self, size: int, letter: str, inputs: int, outputs: int) -> int:
        if not letter:
            return size
        now, full = (inputs, self.inputs) if letter == "i" else (outputs, self.outputs)
        return max(1, size * now // full)

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "shapes": [list(shape) for shape in self.shapes],
            "dims": [list(dims) for dims in self.dims],
            "detail": self.detail,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "unit": self.unit,
        }

    @staticmethod
    def from_json(given: dict[str, Any]) -> LayerKind:
        return LayerKind(
            given["op"],
            tuple(map(tuple, given["shapes"])),
            tuple(map(tuple, given["dims"])),
            given["detail"],
            given["inputs"],
            given["outputs"],
            given["unit"],
        )


def axis_widths(size: int, unit: int = 1) -> tuple[int, ...]:
    """The widths of one side that are measured, ascending; 0 alone where it does not vary.

    Of up to five blocks all, else the first two, a quarter, half and the last: times are nearly
    straight from block to block.
    """
    count = size // unit
    if not count:
        return (0,)
    blocks = -(-count // BLOCK)
    chosen = range(blocks)
    if blocks > 5:
        chosen = sorted({0, 1, blocks // 4, blocks // 2, blocks - 1})  # type: ignore[assignment]
    found = {count}
    for block in chosen:
        found |= {BLOCK * block + place for place in (_PLACES if block else _FIRST)}
    return tuple(unit * width for width in sorted(found) if width <= count)


def coarse_widths(size: int, unit: int = 1) -> tuple[int, ...]:
    """The widths of one side at which both sides are narrow together, ascending, without ``size``
    itself.
    """
    count = size // unit
    if not count:
        return ()
    near = (count // 8, count // 4, count // 2)
    whole = {width if width < BLOCK else width // BLOCK * BLOCK for width in near if width}
    return tuple(unit * width for width in sorted(whole) if width < count)


def points_of(kind: LayerKind) -> Points:
    """Where a kind is measured: each side alone with the other whole, and both together on a
    coarse grid.
    """
    ins, outs = axis_widths(kind.inputs), axis_widths(kind.outputs, kind.unit)
    found = [(kind.inputs, width) for width in outs]
    found += [(width, kind.outputs) for width in ins if width != kind.inputs]
    if kind.inputs and kind.outputs:
        found += [
            (a, b)
            for a in coarse_widths(kind.inputs)
            for b in coarse_widths(kind.outputs, kind.unit)
        ]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class LayerTable:
    """Milliseconds of one kind at the widths of :func:`points_of`.

    Attributes:
        kind: of what.
        times: milliseconds by (input width, output width).
    """

    kind: LayerKind
    times: dict[tuple[int, int], float]

    def predict(self, inputs: Floats, outputs: Floats) -> Floats:
        """Milliseconds at any widths, arrays of one shape.

        The product of both sides' own times over the whole layer's, times how far that is off on
        the coarse grid, in straight lines between its points.
        """
        kind, whole = self.kind, self.times[self.kind.inputs, self.kind.outputs]
        found = np.full(np.broadcast(inputs, outputs).shape, whole)
        if kind.inputs:
            found = found * (np.interp(inputs, *self._inputs) / whole)
        if kind.outputs:
            found = found * (np.interp(outputs, *self._outputs) / whole)
        if kind.inputs and kind.outputs:
            found = found * _bilinear(*self._off, inputs, outputs)
        return found

    @cached_property
    def _inputs(self) -> tuple[Floats, Floats]:
        widths = axis_widths(self.kind.inputs)
        times = [self.times[width, self.kind.outputs] for width in widths]
        return _filled(widths, times, self.kind.inputs, 1)

    @cached_property
    def _outputs(self) -> tuple[Floats, Floats]:
        widths = axis_widths(self.kind.outputs, self.kind.unit)
        times = [self.times[self.kind.inputs, width] for width in widths]
        return _filled(widths, times, self.kind.outputs, self.kind.unit)

    @cached_property
    def _off(self) -> tuple[Floats, Floats, Floats]:
        """Coarse widths of both sides with the whole ones, and measured over product there."""
        kind, whole = self.kind, self.times[self.kind.inputs, self.kind.outputs]
        ins = (*coarse_widths(kind.inputs), kind.inputs)
        outs = (*coarse_widths(kind.outputs, kind.unit), kind.outputs)
        off = np.ones((len(ins), len(outs)))
        for row, a in enumerate(ins[:-1]):
            for column, b in enumerate(outs[:-1]):
                product = np.interp(a, *self._inputs) * np.interp(b, *self._outputs) / whole
                off[row, column] = self.times[a, b] / product
        return np.array(ins, float), np.array(outs, float), off

    def to_json(self) -> dict[str, Any]:
        times = [[a, b, time] for (a, b), time in self.times.items()]
        return {"kind": self.kind.to_json(), "times": times}

    @staticmethod
    def from_json(given: dict[str, Any]) -> LayerTable:
        """The table of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: it is not one, or lacks a point.
        """
        kind = LayerKind.from_json(given["kind"])
        times = {(int(a), int(b)): float(time) for a, b, time in given["times"]}
        if set(times) != set(points_of(kind)) or not all(time > 0 for time in times.values()):
            raise ValueError("not the times of this kind of layer")
        return LayerTable(kind, times)


def _filled(
    widths: Sequence[int], times: Sequence[float], size: int, unit: int
) -> tuple[Floats, Floats]:
    """Widths and times with the blocks between measured ones filled in, place by place."""
    known = dict(zip(widths, times, strict=True))
    count = size // unit
    for place in _PLACES:
        there = [
            (width // unit, time)
            for width, time in known.items()
            if width // unit > BLOCK and (width // unit - 1) % BLOCK + 1 == place
        ]
        if len(there) < 2:
            continue
        there.sort()
        at, took = (np.array(side, float) for side in zip(*there, strict=True))
        for width in range(there[0][0], min(there[-1][0], count) + 1, BLOCK):
            known.setdefault(width * unit, float(np.interp(width, at, took)))
    ordered = sorted(known)
    return np.array(ordered, float), np.array([known[width] for width in ordered])


def _bilinear(rows: Floats, columns: Floats, values: Floats, x: Floats, y: Floats) -> Floats:
    """``values [rows, columns]`` between its points; beyond them, as at the edge."""
    i, s = _place(rows, x)
    j, t = _place(columns, y)
    low = values[i, j] * (1 - t) + values[i, np.minimum(j + 1, len(columns) - 1)] * t
    i = np.minimum(i + 1, len(rows) - 1)
    high = values[i, j] * (1 - t) + values[i, np.minimum(j + 1, len(columns) - 1)] * t
    found: Floats = low * (1 - s) + high * s
    return found


def _place(points: Floats, x: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The point before each of ``x``, and how far ``x`` is on the way to the next."""
    if len(points) < 2:
        return np.zeros(np.shape(x), np.intp), np.zeros(np.shape(x))
    before = np.clip(np.searchsorted(points, x, side="right") - 1, 0, len(points) - 2)
    share = (x - points[before]) / (points[before + 1] - points[before])
    return before, np.clip(share, 0.0, 1.0)
