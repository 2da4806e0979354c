"""Ops that take parts of a tensor: splits, slices, single positions, and writing to them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from fastprune.graph.channels import ChannelTracker, Map, along
from fastprune.graph.program import Op, TracedDim, Value
from fastprune.graph.rules._table import rule
from fastprune.graph.rules.views import native_map

__all__: list[str] = []


def _split_evenly(tracker: ChannelTracker, ids: Map, axis: int, width: int) -> None:
    """Ties position i of every piece of ``width`` along the axis, so that pieces stay equally
    wide.
    """
    moved = np.moveaxis(ids, axis, 0)
    tracker.tie_rows(
        moved.reshape(moved.shape[0] // width, width, -1).swapaxes(0, 1).reshape(width, -1)
    )


def _of_these(tracker: ChannelTracker, ids: Map, axis: int, sizes: list[Any]) -> bool:
    """Whether any of the sizes was computed from the number of these channels themselves."""
    own = along(ids, axis)
    return any(
        np.array_equal(counted, own) for size in sizes for _, counted in tracker.counted(size)
    )


@rule("chunk", "tensor_split", "split", "split_with_sizes", native=True)
def split(tracker: ChannelTracker, op: Op) -> None:
    """Equal chunks are tied so that they stay equal; what is cut at hard-coded sizes stays."""
    ids = native_map(tracker, op)
    size = op.arg(1, "split_size", op.arg(1, "chunks", op.arg(1, "split_size_or_sections")))
    if size is None:
        size = op.kwargs.get(
            "split_sizes", op.kwargs.get("indices_or_sections", op.kwargs.get("sections"))
        )
    sizes = list(size) if isinstance(size, (tuple, list)) else [size]
    reason = f"{op.name} (op {op.index}) cuts them at hard-coded sizes"
    if ids is None:
        for number in sizes:
            tracker.follow(number, None, reason)
        return
    axis = int(op.arg(2, "dim", 0)) % ids.ndim
    if ids.shape[axis] == 1:
        for out in op.outputs:
            tracker.set(out, ids)
        return
    bounds = np.cumsum([0, *(out.shape[axis] for out in op.outputs)])
    pieces = [np.take(ids, np.arange(a, b), axis=axis) for a, b in itertools.pairwise(bounds)]
    for out, piece in zip(op.outputs, pieces, strict=True):
        tracker.set(out, piece)
    if len(pieces) == 1:
        return
    by_number = op.name in ("chunk", "tensor_split")
    if by_number and (len({len(along(p, axis)) for p in pieces}) > 1 or not isinstance(size, int)):
        tracker.freeze(ids, reason)
        return
    if by_number or _of_these(tracker, ids, axis, sizes):
        _split_evenly(tracker, ids, axis, math.gcd(*(int(b) for b in bounds)))
    if not by_number:
        for number, piece in zip(sizes * (len(pieces) // len(sizes)), pieces, strict=False):
            tracker.follow(number, along(piece, axis), reason)
        if len(pieces) % len(sizes):
            tracker.freeze(ids, reason)


@rule("narrow", native=True)
def narrow(tracker: ChannelTracker, op: Op) -> None:
    ids = native_map(tracker, op)
    if ids is None:
        return
    axis = int(op.arg(1, "dim")) % ids.ndim
    start, length = op.arg(2, "start"), op.arg(3, "length")
    tracker.pass_on(
        op, _cut(tracker, op, ids, axis, slice(start, start + length), op.inputs[0].shape[axis])
    )


@rule("select", "unbind", native=True)
def select(tracker: ChannelTracker, op: Op) -> None:
    ids = native_map(tracker, op)
    if ids is None:
        return
    axis = int(op.arg(1, "dim", 0)) % ids.ndim
    if ids.shape[axis] > 1:
        tracker.stop(op, f"{op.name} (op {op.index}) takes channels by number")
        return
    for out in op.outputs:
        tracker.set(out, np.squeeze(ids, axis=axis))


def _cut(tracker: ChannelTracker, op: Op, ids: Map, axis: int, index: slice, size: int) -> Map:
    """A slice along a channel axis: the channels that a bound counts stay as many as it says."""
    start, stop, step = index.indices(size)
    if ids.shape[axis] == 1:
        return ids
    reason = f"{op.name} (op {op.index}) takes channels by number"
    if step != 1:
        tracker.freeze(ids, reason)
    elif _of_these(tracker, ids, axis, [index.start, index.stop]):
        _split_evenly(tracker, ids, axis, math.gcd(size, start, stop))
    channels = along(ids, axis)
    for bound, at in ((index.start, start), (index.stop, stop)):
        traced = bound.__class__ is TracedDim
        if bound is None or (not traced and (bound == 0 or bound >= size)):
            continue
        if bound < 0:
            tracker.follow(-bound, channels[at:], reason)
        else:
            tracker.follow(bound, channels[:at], reason)
    return ids[(slice(None),) * axis + (slice(start, stop, step),)]


@rule("getitem", native=True)
def getitem(tracker: ChannelTracker, op: Op) -> None:
    """Slices and integers; anything else freezes the channels."""
    ids = native_map(tracker, op)
    for extra in op.inputs[1:]:
        tracker.fix(extra, f"indexing (op {op.index}) reads it")
    if ids is None:
        return
    index = op.args[1] if isinstance(op.args[1], (tuple, list)) else (op.args[1],)
    plain = [i for i in index if i is None or i is Ellipsis or isinstance(i, (int, slice))]
    if len(plain) != len(index) or any(isinstance(i, bool) for i in index):
        tracker.stop(op, f"indexing by a tensor or list (op {op.index})")
        return
    shape = op.inputs[0].shape
    missing = len(shape) - sum(i is not None and i is not Ellipsis for i in index)
    full: list[Any] = []
    for i in index:
        full.extend([slice(None)] * missing if i is Ellipsis else [i])
    if Ellipsis not in plain:
        full.extend([slice(None)] * missing)
    axis = source = 0
    for i in full:
        if i is None:
            ids = np.expand_dims(ids, axis)
            axis += 1
            continue
        if isinstance(i, slice):
            ids = _cut(tracker, op, ids, axis, i, shape[source])
            axis += 1
        else:
            if ids.shape[axis] > 1:
                tracker.stop(op, f"indexing (op {op.index}) takes a channel by number")
                return
            ids = np.squeeze(ids, axis=axis)
        source += 1
    tracker.pass_on(op, ids)


def index_select_shape(op: Op) -> tuple[int, ...]:
    shape = list(op.inputs[0].shape)
    shape[op.arg(1, "dim")] = math.prod(op.inputs[-1].shape)
    return tuple(shape)


@rule("index_select", shape=index_select_shape)
def index_select(tracker: ChannelTracker, op: Op) -> None:
    """By a buffer (ChannelSelect): the selected channels are new ones, dropped by shortening the
    buffer.
    """
    source, index = op.inputs[0], op.inputs[-1]
    ids = tracker.map(source)
    axis = int(op.arg(1, "dim")) % len(source.shape)
    reason = f"index_select (op {op.index}) takes channels by number"
    if ids is not None and ids.shape[axis] == 1:
        tracker.pass_on(op, ids)
        return
    tracker.freeze(ids, reason)
    if index.source == "buffer" and axis == 1:
        channels = tracker.new(index.shape[0], index.name.rpartition(".")[0])
        tracker.slot("index", 0, channels, index)
        shape = [1] * len(source.shape)
        shape[axis] = -1
        tracker.set(op.outputs[0], channels.reshape(shape))


@rule("setitem")
def setitem(tracker: ChannelTracker, op: Op) -> None:
    """Writing to positions of other axes, or where a mask of the same channels says, changes no
    channel.
    """
    x, given = op.inputs[0], op.args[2]
    ids = tracker.map(x)
    index = list(op.args[1]) if isinstance(op.args[1], (tuple, list)) else [op.args[1]]
    if (
        ids is not None
        and len(index) == 1
        and isinstance(index[0], Value)
        and not isinstance(given, Value)
    ):
        mask = tracker.map(index[0])
        if mask is not None and mask.shape == ids.shape:
            tracker.tie(ids, mask)
            tracker.pass_on(op, ids)
            return
    if ids is None or not all(i is Ellipsis or isinstance(i, (int, slice)) for i in index):
        tracker.stop(op, f"writing to parts of a tensor (op {op.index})")
        return
    if Ellipsis not in index:
        index.append(Ellipsis)
    at = index.index(Ellipsis)
    index[at : at + 1] = [slice(None)] * (ids.ndim - len(index) + 1)
    across = any(i != slice(None) for i, n in zip(index, ids.shape, strict=True) if n > 1)
    if not across and not isinstance(given, Value):
        tracker.pass_on(op, ids)
        return
    other = tracker.map(given) if isinstance(given, Value) else None
    same = (
        other is not None and other.shape == ids.shape and all(isinstance(i, slice) for i in index)
    )
    if across or other is None or not same:
        tracker.stop(op, f"writing to parts of a tensor (op {op.index})")
        return
    tracker.tie(ids, other)
    tracker.pass_on(op, ids)
