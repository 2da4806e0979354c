"""Bookkeeping while the rules walk a Program: which tensor positions hold which channels, and what
ties them.

A *channel map* is an integer array that broadcasts to a value's shape; each entry is the channel
that the position belongs to, or ``FIXED`` where the position can never be dropped. ``[1, C, 1,
1]`` is the usual map of an image tensor. Views, concatenation, padding and indexing are the same
operation on the map as on the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastprune.graph.program import Op, Program, Value

__all__ = ["FIXED", "ChannelTracker", "Layer", "LayerCall", "Map", "RawSlot", "along"]

FIXED = -1
Map = NDArray[np.int64]


class RawSlot(NamedTuple):
    """A dimension of parameters that holds channels: ``ids[position]`` is one, or FIXED."""

    parameters: tuple[str, ...]
    dim: int
    role: str
    ids: Map


class LayerCall(NamedTuple):
    """A convolution or linear call with its channels: what :class:`Layer` is made from when cost
    is asked for.
    """

    kind: str
    op: Op
    outputs: Map | None
    inputs: Map | None


class Layer(NamedTuple):
    """A convolution or linear call, as the closed-form cost needs it.

    MACs = ``positions * kernel * (kept outputs) * (kept inputs)``; with conv groups, inputs are
    those of one group and never change, since whole groups are kept or dropped.

    Attributes:
        kind: ``conv`` or ``linear``.
        weight: name of the weight, or "" where it is computed in the forward pass.
        positions: output positions (input positions for transposed convolutions).
        kernel: kernel elements.
        outputs, inputs: ids of the channels, or None where all are fixed.
        output_width, input_width: sizes in the traced network (inputs of one conv group).
        op: index of the call.
    """

    kind: str
    weight: str
    positions: int
    kernel: int
    outputs: Map | None
    inputs: Map | None
    output_width: int
    input_width: int
    op: int


def along(ids: Map, axis: int) -> Map:
    """The channels of one axis ``[size]``, at the first position of the others."""
    return np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]


@dataclass(slots=True)
class ChannelTracker:
    """Everything the rules note down. ``maps[value.id]`` is the value's channel map, or None
    without channels.
    """

    modules: dict[str, Any]
    maps: list[Map | None] = field(default_factory=list)
    selected: frozenset[int] = frozenset()
    ops: Sequence[Op] = ()
    next_id: int = 0
    producers: list[tuple[int, str]] = field(default_factory=list)
    ties: list[tuple[Map, Map]] = field(default_factory=list)
    frozen: list[tuple[Map, str]] = field(default_factory=list)
    slots: list[RawSlot] = field(default_factory=list)
    layers: list[LayerCall] = field(default_factory=list)
    by_dim: dict[tuple[str, int], Map | None] = field(default_factory=dict)
    fixed_parameters: dict[str, str] = field(default_factory=dict)
    balances: list[tuple[list[tuple[float, Map]], str]] = field(default_factory=list)
    adopted: set[int] = field(default_factory=set)

    def start(self, program: Program, selected: frozenset[int]) -> None:
        """Begins a program; ties and slots of an earlier one stay."""
        self.maps = [None] * program.values
        self.layers = []
        self.selected = selected
        self.ops = program.ops

    def new(self, count: int, name: str) -> Map:
        """``count`` new channels, made by the layer called ``name``."""
        start = self.next_id
        self.next_id = start + count
        self.producers.append((start, name))
        return np.arange(start, start + count)

    def tie(self, a: Map, b: Map) -> None:
        """Channels at equal positions live or die together."""
        if a is not b:
            self.ties.append((a, b))

    def tie_rows(self, rows: Map) -> None:
        """All channels of a row ``[row, column]`` live or die together."""
        if rows.shape[1] > 1:
            self.ties.append((rows[:, 1:], np.broadcast_to(rows[:, :1], rows[:, 1:].shape)))

    def freeze(self, ids: Map | None, reason: str) -> None:
        """These channels can never be dropped, because of ``reason``."""
        if ids is not None:
            self.frozen.append((ids, reason))

    def map(self, value: Value) -> Map | None:
        return self.maps[value.id]

    def set(self, value: Value, ids: Map | None) -> None:
        self.maps[value.id] = ids

    def axis(self, value: Value, axis: int, op: Op) -> Map | None:
        """The channels along one axis as a 1-D array; channels on other axes are frozen, since
        ``op`` mixes them.
        """
        ids = self.maps[value.id]
        if ids is None:
            return None
        axis %= len(value.shape)
        if ids.size == ids.shape[axis] == value.shape[axis]:
            return ids.reshape(-1)
        self.freeze(ids, f"{op.name} (op {op.index}) mixes channels along another axis")
        return None

    def counted(self, size: Any) -> list[tuple[float, Map]]:
        """The channels whose number went into a size that the forward pass read, and how fast it
        grows with them.
        """
        found = []
        for value, axis, factor in getattr(size, "origin", ()):
            ids = self.maps[value]
            if ids is not None and ids.shape[axis] > 1:
                found.append((factor, along(ids, axis)))
        return found

    def follow(self, size: Any, kept: Map | None, reason: str) -> None:
        """A size of the forward pass, hard-coded or read, must stay the number of the channels
        ``kept`` that live.

        With None for ``kept`` the size may not change at all. Whatever would break this is frozen.
        """
        terms = self.counted(size)
        if kept is not None:
            terms.append((-1.0, kept))
        if terms:
            self.balances.append((terms, reason))

    def slot(self, role: str, dim: int, ids: Map | None, *values: Value | None) -> None:
        """Parameters whose dimension ``dim`` holds the channels ``ids``; a second use ties to the
        first.
        """
        names = []
        for value in values:
            if value is None or value.shape == ():
                continue
            if value.source not in ("parameter", "buffer"):
                held = self.maps[value.id]
                if (
                    ids is not None
                    and held is not None
                    and held.size == held.shape[dim] == ids.size
                ):
                    self.tie(ids, held.reshape(-1))
                    continue
                reason = f"{role} is computed in the forward pass, not a parameter"
                self.freeze(ids, reason)
                self.freeze(held, reason)
                continue
            key = (value.name, dim)
            if key not in self.by_dim:
                self.by_dim[key] = ids
                names.append(value.name)
                continue
            first = self.by_dim[key]
            if first is None or ids is None:
                self.freeze(
                    ids if first is None else first, f"{value.name} is also used on fixed channels"
                )
            elif first.size != ids.size:
                self.freeze(first, f"{value.name} is used with two layouts")
                self.freeze(ids, f"{value.name} is used with two layouts")
            else:
                self.tie(first, ids)
        if names and ids is not None:
            self.slots.append(RawSlot(tuple(names), dim, role, ids))

    def reused(self, value: Value, dim: int) -> Map | None:
        """The channels an earlier use of this parameter gave to ``dim``."""
        return self.by_dim.get((value.name, dim)) if value.name else None

    def fix(self, value: Value, reason: str) -> None:
        """The parameter is read in a way that surgery cannot follow: its channels are frozen
        wherever else it is used.
        """
        if value.name:
            self.fixed_parameters.setdefault(value.name, reason)

    def pass_on(self, op: Op, ids: Map | None) -> None:
        """The first output has these channels, and so have others of its shape (values and indices
        of a maximum).
        """
        first = op.outputs[0]
        self.maps[first.id] = ids
        for other in op.outputs[1:]:
            if other.shape == first.shape:
                self.maps[other.id] = ids

    def stop(self, op: Op, reason: str) -> None:
        """The op's channels cannot be followed: freeze what goes in, nothing comes out."""
        for value in op.inputs:
            self.freeze(self.maps[value.id], reason)
            self.fix(value, reason)

    def adopt(self, value: Value) -> Map | None:
        """Channels of a bare parameter or buffer that is rearranged or computed with before it
        meets an activation.

        Only where one dimension holds more than one element; None otherwise.
        """
        if value.source not in ("parameter", "buffer") or not value.dtype.is_floating_point:
            return None
        wide = [dim for dim, size in enumerate(value.shape) if size > 1]
        if len(wide) != 1:
            return None
        self.adopted.add(self.next_id)
        ids = self.new(value.shape[wide[0]], value.name)
        # Statistics are divided by, so a mask must not make them zero.
        self.slot("shift" if value.source == "parameter" else "divisor", wide[0], ids, value)
        self.maps[value.id] = ids.reshape(value.shape)
        return self.maps[value.id]

    def layer_behind(self, value: Value) -> str:
        """The layer whose parameter the value was computed from; "" where there is none."""
        while not value.name and value.producer >= 0 and self.ops[value.producer].inputs:
            value = self.ops[value.producer].inputs[0]
        layer, _, parametrized = value.name.partition(".parametrizations.")
        return layer if parametrized else layer.rpartition(".")[0] or layer

    def owner(self, value: Value | None) -> Any:
        """The module that holds this parameter as its own attribute, or None."""
        if value is None or not value.name:
            return None
        return self.modules.get(value.name.rpartition(".")[0])
