"""Ops that only rearrange: the same view is taken of the channel map.

After pruning, the kept positions must still form a rectangle, and hard-coded sizes must still be right. Each rule
ties what keeps the rectangle, and freezes what a hard-coded size nails down.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastprune.graph.channels import FIXED, ChannelTracker, Map
from fastprune.graph.program import Op, TracedDim, Value
from fastprune.graph.rules._table import rule

__all__: list[str] = []


def _native(tracker: ChannelTracker, op: Op) -> Map | None:
    """The map of the first input; a parameter that is viewed before use is fixed."""
    source = op.inputs[0]
    if tracker.map(source) is None:
        tracker.fix(source, f"{op.name} (op {op.index}) rearranges it before use")
    return tracker.map(source)


def _sizes(op: Op) -> list[Any]:
    given: Any = op.args[1:] if len(op.args) > 1 else op.kwargs.get("shape", op.kwargs.get("size", ()))
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = given[0]
    return list(given)


@rule("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", native=True)
def reshape(tracker: ChannelTracker, op: Op) -> None:
    """Blocks of axes with equal products are reshaped on their own."""
    ids = _native(tracker, op)
    if ids is None:
        return
    before, after = op.inputs[0].shape, op.outputs[0].shape
    for extra in op.inputs[1:]:
        tracker.fix(extra, f"{op.name} reads its shape")
    flexible = [True] * len(after)
    if op.name in ("view", "reshape"):
        sizes = _sizes(op)
        if len(sizes) != len(after) or not all(isinstance(s, int) for s in sizes):
            tracker.freeze(ids, f"{op.name} (op {op.index}) changes their type")
            return
        flexible = [isinstance(s, TracedDim) or s == -1 for s in sizes]
    elif op.name == "unflatten":
        dim = op.arg(1, "dim") % len(before)
        sizes = list(op.arg(2, "sizes"))
        flexible[dim : dim + len(sizes)] = [isinstance(s, TracedDim) or s == -1 for s in sizes]
    tracker.pass_on(op, _reshaped(tracker, op, ids, before, after, flexible))


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[range, range]]:
    """Axes that belong together: the finest split with equal products on both sides."""
    blocks = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j, left, right = i, j, 1, 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        blocks.append((range(start_i, i), range(start_j, j)))
    return blocks


def _reshaped(
    tracker: ChannelTracker, op: Op, ids: Map, before: tuple[int, ...], after: tuple[int, ...], flexible: list[bool]
) -> Map | None:
    expand, target, blocks = list(ids.shape), [1] * len(after), []
    if 0 in before:
        tracker.freeze(ids, "an empty tensor")
        return None
    for source, made in _blocks(before, after):
        if all(ids.shape[i] == 1 for i in source):
            continue
        for i in source:
            expand[i] = before[i]
        for j in made:
            target[j] = after[j]
        blocks.append((source, made))
    result = np.broadcast_to(ids, expand).reshape(target)
    for source, made in blocks:
        wide = [j for j in made if after[j] > 1]
        movable = [j for j in wide if flexible[j]]
        if len(movable) != 1 and not (len(movable) == 0 and len(wide) == 0):
            kept = [i for i in source if before[i] > 1]
            # Traced sizes on every axis of an unchanged block follow the tensor as they are.
            if movable == wide and [before[i] for i in kept] == [after[j] for j in wide]:
                continue
            sizes = [after[j] for j in made]
            tracker.freeze(result, f"{op.name} (op {op.index}) to the hard-coded sizes {sizes}")
            return result
        fixed = [j for j in wide if not flexible[j]]
        if fixed:
            moved = np.moveaxis(result, movable[0], 0).reshape(after[movable[0]], -1)
            tracker.tie_rows(moved)
    # Axes along which nothing changes carry no channels.
    return result


@rule("permute", native=True)
def permute(tracker: ChannelTracker, op: Op) -> None:
    ids = _native(tracker, op)
    if ids is not None:
        order = _sizes(op) or list(op.kwargs["dims"])
        tracker.pass_on(op, ids.transpose([int(d) for d in order]))


@rule("transpose", "swapaxes", "swapdims", native=True)
def transpose(tracker: ChannelTracker, op: Op) -> None:
    ids = _native(tracker, op)
    if ids is not None:
        tracker.pass_on(op, ids.swapaxes(op.arg(1, "dim0"), op.arg(2, "dim1")))


@rule("t", "T", "mT", "adjoint", native=True)
def t(tracker: ChannelTracker, op: Op) -> None:
    ids = _native(tracker, op)
    if ids is not None and ids.ndim > 1:
        tracker.pass_on(op, ids.swapaxes(-1, -2))


@rule("movedim", "moveaxis", native=True)
def movedim(tracker: ChannelTracker, op: Op) -> None:
    ids = _native(tracker, op)
    if ids is not None:
        tracker.pass_on(op, np.moveaxis(ids, op.arg(1, "source"), op.arg(2, "destination")))


@rule("squeeze", "unsqueeze", native=True)
def squeeze(tracker: ChannelTracker, op: Op) -> None:
    """Only axes of size one come and go, so the map keeps its order."""
    ids = _native(tracker, op)
    if ids is None:
        return
    if op.name == "unsqueeze":
        tracker.pass_on(op, np.expand_dims(ids, op.arg(1, "dim")))
        return
    shape = op.inputs[0].shape
    dim = op.arg(1, "dim")
    dims = range(len(shape)) if dim is None else [d % len(shape) for d in (dim if isinstance(dim, tuple) else (dim,))]
    gone = tuple(d for d in dims if shape[d] == 1)
    if any(ids.shape[d] == 1 and ids.size == 1 and ids.flat[0] != FIXED for d in gone):
        tracker.freeze(ids, f"squeeze (op {op.index}) of a single channel")
    tracker.pass_on(op, np.squeeze(ids, axis=gone))


@rule("expand", "broadcast_to", native=True)
def expand(tracker: ChannelTracker, op: Op) -> None:
    ids = _native(tracker, op)
    if ids is None:
        return
    after = op.outputs[0].shape
    ids = ids.reshape((1,) * (len(after) - ids.ndim) + ids.shape)
    for axis, size in enumerate(_sizes(op)[-len(after) :]):
        if ids.shape[axis] > 1 and size != -1 and not isinstance(size, TracedDim):
            tracker.freeze(ids, f"{op.name} (op {op.index}) to a hard-coded size {size}")
    tracker.pass_on(op, ids)


@rule("repeat", "tile", "repeat_interleave", "roll")
def repeat(tracker: ChannelTracker, op: Op) -> None:
    """Along other axes channels stay as they are."""
    ids = _native(tracker, op)
    if ids is None:
        return
    before, after = op.inputs[0].shape, op.outputs[0].shape
    ids = ids.reshape((1,) * (len(after) - ids.ndim) + ids.shape)
    before = (1,) * (len(after) - len(before)) + before
    if op.name == "roll":
        dims = op.arg(2, "dims")
        along = range(len(after)) if dims is None else dims if isinstance(dims, (tuple, list)) else (dims,)
        if any(ids.shape[d] > 1 for d in along):
            tracker.freeze(ids, f"roll (op {op.index}) moves these channels by a fixed number")
        tracker.pass_on(op, ids)
        return
    for axis, (n, m) in enumerate(zip(before, after, strict=True)):
        if ids.shape[axis] > 1 and m != n:
            one = np.repeat if op.name == "repeat_interleave" else _tiled
            ids = one(ids, m // n, axis=axis)
    tracker.pass_on(op, ids)


def _tiled(ids: Map, times: int, *, axis: int) -> Map:
    return np.concatenate([ids] * times, axis=axis)


def _split_evenly(tracker: ChannelTracker, ids: Map, axis: int, width: int) -> None:
    """Ties position i of every piece of ``width`` along the axis, so that pieces stay equally wide."""
    moved = np.moveaxis(ids, axis, 0)
    tracker.tie_rows(moved.reshape(moved.shape[0] // width, width, -1).swapaxes(0, 1).reshape(width, -1))


def _pieces(tracker: ChannelTracker, op: Op, ids: Map, axis: int, traced: bool, reason: str) -> None:
    """The outputs are consecutive pieces along ``axis``."""
    bounds = np.cumsum([0, *(out.shape[axis] for out in op.outputs)])
    size = op.inputs[0].shape[axis]
    if len(op.outputs) > 1 or bounds[-1] != size:
        if traced:
            _split_evenly(tracker, ids, axis, math.gcd(size, *(int(b) for b in bounds)))
        else:
            tracker.freeze(ids, reason)
    for out, start, stop in zip(op.outputs, bounds[:-1], bounds[1:], strict=True):
        tracker.set(out, np.take(ids, np.arange(start, stop), axis=axis))


@rule("chunk", "tensor_split", "split", "split_with_sizes", native=True)
def split(tracker: ChannelTracker, op: Op) -> None:
    """Equal chunks are tied so that they stay equal; hard-coded sizes freeze what they cut."""
    ids = _native(tracker, op)
    if ids is None:
        return
    size = op.arg(1, "split_size", op.arg(1, "chunks", op.arg(1, "split_size_or_sections")))
    if size is None:
        size = op.kwargs.get("split_sizes", op.kwargs.get("indices_or_sections"))
    axis = int(op.arg(2, "dim", 0)) % ids.ndim
    if ids.shape[axis] == 1:
        tracker.pass_on(op, ids)
        return
    even = len({out.shape[axis] for out in op.outputs}) == 1
    if op.name in ("chunk", "tensor_split"):
        traced = isinstance(size, int) and even
    else:
        sizes = size if isinstance(size, (tuple, list)) else (size,)
        traced = all(isinstance(s, TracedDim) for s in sizes) and (even or isinstance(size, (tuple, list)))
    _pieces(tracker, op, ids, axis, traced, f"{op.name} (op {op.index}) cuts them at hard-coded sizes")


@rule("narrow", native=True)
def narrow(tracker: ChannelTracker, op: Op) -> None:
    ids = _native(tracker, op)
    if ids is None:
        return
    axis = int(op.arg(1, "dim")) % ids.ndim
    start, length = op.arg(2, "start"), op.arg(3, "length")
    tracker.pass_on(op, _cut(tracker, op, ids, axis, slice(start, start + length), op.inputs[0].shape[axis]))


@rule("select", "unbind", native=True)
def select(tracker: ChannelTracker, op: Op) -> None:
    ids = _native(tracker, op)
    if ids is None:
        return
    axis = int(op.arg(1, "dim", 0)) % ids.ndim
    if ids.shape[axis] > 1:
        tracker.stop(op, f"{op.name} (op {op.index}) takes channels by number")
    else:
        tracker.pass_on(op, np.squeeze(ids, axis=axis))


def _cut(tracker: ChannelTracker, op: Op, ids: Map, axis: int, index: slice, size: int) -> Map:
    """A slice along a channel axis: whole, at traced sizes (tied in equal pieces), or hard-coded (frozen)."""
    start, stop, step = index.indices(size)
    if ids.shape[axis] == 1:
        return ids
    if (start, step) == (0, 1) and stop == size and (index.stop is None or index.stop >= size):
        return ids
    traced = all(b is None or b == 0 or isinstance(b, TracedDim) for b in (index.start, index.stop))
    if traced and step == 1:
        _split_evenly(tracker, ids, axis, math.gcd(size, start, stop))
    else:
        tracker.freeze(ids, f"{op.name} (op {op.index}) takes channels by number")
    return ids[(slice(None),) * axis + (slice(start, stop, step),)]


@rule("getitem", native=True)
def getitem(tracker: ChannelTracker, op: Op) -> None:
    """Slices and integers; anything else freezes the channels."""
    ids = _native(tracker, op)
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
    """By a buffer (ChannelSelect): the selected channels are new ones, dropped by shortening the buffer."""
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


def pad_shape(op: Op) -> tuple[int, ...]:
    shape = list(op.inputs[0].shape)
    for i, amount in enumerate(op.arg(1, "pad")):
        shape[len(shape) - 1 - i // 2] += int(amount)
    return tuple(shape)


@rule("pad", shape=pad_shape)
def pad(tracker: ChannelTracker, op: Op) -> None:
    """Padding on the channel axis adds positions that are never dropped (the option-A shortcut)."""
    ids = _native(tracker, op)
    if ids is None:
        return
    amounts = list(op.arg(1, "pad"))
    mode = op.arg(2, "mode", "constant")
    for i in range(0, len(amounts), 2):
        axis = ids.ndim - 1 - i // 2
        low, high = int(amounts[i]), int(amounts[i + 1])
        if ids.shape[axis] == 1 and op.inputs[0].shape[axis] > 1 or low == high == 0:
            continue
        if min(low, high) < 0 or mode != "constant":
            tracker.stop(op, f"pad (op {op.index}) changes these channels")
            return
        if ids.size > 1 and ids.shape[axis] == 1:
            continue
        widths = [(0, 0)] * ids.ndim
        widths[axis] = (low, high)
        ids = np.pad(ids, widths, constant_values=FIXED)
    tracker.pass_on(op, ids)




@rule("channel_shuffle", "native_channel_shuffle", shape=lambda op: op.inputs[0].shape)
def channel_shuffle(tracker: ChannelTracker, op: Op) -> None:
    """Channel j of every shuffle group is tied, so that the groups stay equally wide."""
    channels = tracker.axis(op.inputs[0], 1, op)
    if channels is None:
        return
    rows = channels.reshape(int(op.arg(1, "groups")), -1)
    tracker.tie_rows(rows.T)
    tracker.pass_on(op, rows.T.reshape(1, -1, *(1,) * (len(op.inputs[0].shape) - 2)))


def pixel_shuffle_shape(op: Op) -> tuple[int, ...]:
    *batch, c, h, w = op.inputs[0].shape
    r = op.arg(1, "upscale_factor")
    return (*batch, c // (r * r), h * r, w * r)


@rule("pixel_shuffle", shape=pixel_shuffle_shape)
def pixel_shuffle(tracker: ChannelTracker, op: Op) -> None:
    """The r² channels that become one are tied."""
    x = op.inputs[0]
    channels = tracker.axis(x, -3, op)
    if channels is None:
        return
    rows = channels.reshape(-1, op.arg(1, "upscale_factor") ** 2)
    tracker.tie_rows(rows)
    tracker.pass_on(op, rows[:, 0].reshape((1,) * (len(x.shape) - 3) + (-1, 1, 1)))


def pixel_unshuffle_shape(op: Op) -> tuple[int, ...]:
    *batch, c, h, w = op.inputs[0].shape
    r = op.arg(1, "downscale_factor")
    return (*batch, c * r * r, h // r, w // r)


@rule("pixel_unshuffle", shape=pixel_unshuffle_shape)
def pixel_unshuffle(tracker: ChannelTracker, op: Op) -> None:
    """One channel becomes r² of them."""
    x = op.inputs[0]
    channels = tracker.axis(x, -3, op)
    if channels is not None:
        many = np.repeat(channels, op.arg(1, "downscale_factor") ** 2)
        tracker.pass_on(op, many.reshape((1,) * (len(x.shape) - 3) + (-1, 1, 1)))
