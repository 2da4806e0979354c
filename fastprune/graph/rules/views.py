"""Ops that only rearrange: the same view is taken of the channel map.

After pruning, the kept positions must still form a rectangle, and hard-coded sizes must still be
right. Each rule ties what keeps the rectangle, and freezes what a hard-coded size nails down.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastprune.graph.channels import FIXED, ChannelTracker, Map, along
from fastprune.graph.program import Op, TracedDim
from fastprune.graph.rules._table import CREATION, rule

__all__ = ["follow", "native_map"]


def native_map(tracker: ChannelTracker, op: Op) -> Map | None:
    """The map of the first input; a bare vector gets one, another parameter that is viewed before
    use is fixed.
    """
    source = op.inputs[0]
    ids = tracker.map(source)
    if ids is None:
        ids = tracker.adopt(source)
        if ids is None:
            tracker.fix(source, f"{op.name} (op {op.index}) rearranges it before use")
    return ids


def _sizes(op: Op) -> list[Any]:
    given: Any = (
        op.args[1:] if len(op.args) > 1 else op.kwargs.get("shape", op.kwargs.get("size", ()))
    )
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = given[0]
    return list(given)


@rule("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", native=True)
def reshape(tracker: ChannelTracker, op: Op) -> None:
    """Blocks of axes with equal products are reshaped on their own."""
    ids = native_map(tracker, op)
    before, after = op.inputs[0].shape, op.outputs[0].shape
    sizes: list[Any] = [-1] * len(after)
    if op.name in ("view", "reshape"):
        sizes = _sizes(op)
        if len(sizes) != len(after) or not all(isinstance(s, int) for s in sizes):
            tracker.freeze(ids, f"{op.name} (op {op.index}) changes their type")
            return
    elif op.name == "unflatten":
        dim = op.arg(1, "dim") % len(before)
        given = list(op.arg(2, "sizes"))
        sizes[dim : dim + len(given)] = given
    elif op.name in ("view_as", "reshape_as"):
        other = op.inputs[1]
        sizes = [TracedDim(n, ((other.id, axis, 1),)) for axis, n in enumerate(other.shape)]
    flexible = [s == -1 or bool(tracker.counted(s)) for s in sizes]
    if ids is not None:
        ids = _reshaped(tracker, op, ids, before, after, flexible)
        tracker.pass_on(op, ids)
    for axis, size in enumerate(sizes):
        follow(tracker, op, ids, axis, size)


def follow(tracker: ChannelTracker, op: Op, ids: Map | None, axis: int, size: Any) -> None:
    """An axis that was given a size read from channels must keep as many as that says."""
    if size.__class__ is TracedDim:
        kept = along(ids, axis) if ids is not None and ids.shape[axis] > 1 else None
        tracker.follow(size, kept, f"{op.name} (op {op.index}) needs their number")


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
    tracker: ChannelTracker,
    op: Op,
    ids: Map,
    before: tuple[int, ...],
    after: tuple[int, ...],
    flexible: list[bool],
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
            rows = np.moveaxis(result, movable[0], 0)
            tracker.tie_rows(rows.reshape(len(rows), -1))
            # What is tied along an axis needs no entry of its own there.
            for j in fixed:
                result = result.take([0], axis=j)
    return result


@rule("permute", native=True)
def permute(tracker: ChannelTracker, op: Op) -> None:
    ids = native_map(tracker, op)
    if ids is not None:
        order = _sizes(op) or list(op.kwargs["dims"])
        tracker.pass_on(op, ids.transpose([int(d) for d in order]))


@rule("transpose", "swapaxes", "swapdims", native=True)
def transpose(tracker: ChannelTracker, op: Op) -> None:
    ids = native_map(tracker, op)
    if ids is not None:
        tracker.pass_on(op, ids.swapaxes(op.arg(1, "dim0"), op.arg(2, "dim1")))


@rule("t", "T", "mT", "adjoint", native=True)
def t(tracker: ChannelTracker, op: Op) -> None:
    ids = native_map(tracker, op)
    if ids is not None and ids.ndim > 1:
        tracker.pass_on(op, ids.swapaxes(-1, -2))


@rule("movedim", "moveaxis", native=True)
def movedim(tracker: ChannelTracker, op: Op) -> None:
    ids = native_map(tracker, op)
    if ids is not None:
        tracker.pass_on(op, np.moveaxis(ids, op.arg(1, "source"), op.arg(2, "destination")))


@rule("squeeze", "unsqueeze", native=True)
def squeeze(tracker: ChannelTracker, op: Op) -> None:
    """Only axes of size one come and go, so the map keeps its order."""
    ids = native_map(tracker, op)
    if ids is None:
        return
    if op.name == "unsqueeze":
        tracker.pass_on(op, np.expand_dims(ids, op.arg(1, "dim")))
        return
    shape = op.inputs[0].shape
    dim = op.arg(1, "dim")
    dims = (
        range(len(shape))
        if dim is None
        else [d % len(shape) for d in (dim if isinstance(dim, tuple) else (dim,))]
    )
    gone = tuple(d for d in dims if shape[d] == 1)
    if any(ids.shape[d] == 1 and ids.size == 1 and ids.flat[0] != FIXED for d in gone):
        tracker.freeze(ids, f"squeeze (op {op.index}) of a single channel")
    tracker.pass_on(op, np.squeeze(ids, axis=gone))


@rule("expand", "broadcast_to", native=True)
def expand(tracker: ChannelTracker, op: Op) -> None:
    ids = native_map(tracker, op)
    after, sizes = op.outputs[0].shape, _sizes(op)
    if ids is not None:
        ids = ids.reshape((1,) * (len(after) - ids.ndim) + ids.shape)
        tracker.pass_on(op, ids)
    for axis, size in enumerate(sizes):
        if ids is not None and ids.shape[axis] > 1 and size != -1 and not tracker.counted(size):
            tracker.freeze(ids, f"{op.name} (op {op.index}) to a hard-coded size {size}")
        follow(tracker, op, ids, axis, size)


@rule("repeat", "tile", "repeat_interleave", "roll")
def repeat(tracker: ChannelTracker, op: Op) -> None:
    """Along other axes channels stay as they are."""
    ids = native_map(tracker, op)
    if ids is None:
        return
    before, after = op.inputs[0].shape, op.outputs[0].shape
    ids = ids.reshape((1,) * (len(after) - ids.ndim) + ids.shape)
    before = (1,) * (len(after) - len(before)) + before
    if op.name == "roll":
        dims = op.arg(2, "dims")
        along = (
            range(len(after))
            if dims is None
            else dims
            if isinstance(dims, (tuple, list))
            else (dims,)
        )
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


def pad_shape(op: Op) -> tuple[int, ...]:
    shape = list(op.inputs[0].shape)
    for i, amount in enumerate(op.arg(1, "pad")):
        shape[len(shape) - 1 - i // 2] += int(amount)
    return tuple(shape)


@rule("pad", shape=pad_shape)
def pad(tracker: ChannelTracker, op: Op) -> None:
    """Padding on the channel axis adds positions that are never dropped (option-A shortcut)."""
    ids = native_map(tracker, op)
    if ids is None:
        return
    amounts = list(op.arg(1, "pad"))
    mode = op.arg(2, "mode", "constant")
    for i in range(0, len(amounts), 2):
        axis = ids.ndim - 1 - i // 2
        low, high = int(amounts[i]), int(amounts[i + 1])
        for amount in amounts[i : i + 2]:
            tracker.follow(amount, None, f"pad (op {op.index}) needs their number")
        if (ids.shape[axis] == 1 and op.inputs[0].shape[axis] > 1) or low == high == 0:
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


@rule("unfold")
def unfold(tracker: ChannelTracker, op: Op) -> None:
    """``F.unfold``: one channel becomes as many rows as the window has pixels; ``Tensor.unfold``
    is another op.
    """
    x, made = op.inputs[0], op.outputs[0]
    channels = tracker.axis(x, 1, op) if len(made.shape) == 3 else None
    if channels is None:
        tracker.stop(op, f"unfold (op {op.index}) takes windows of these channels")
        return
    tracker.pass_on(op, np.repeat(channels, made.shape[1] // len(channels)).reshape(1, -1, 1))


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def uniform(tracker: ChannelTracker, op: Op) -> None:
    """Equal elements: where a size is the number of some channels, they are those channels."""
    made = op.outputs[0]
    sizes = [
        s
        for s in _flat((*op.args, *op.kwargs.values()))
        if isinstance(s, int) and not isinstance(s, bool)
    ]
    reason = f"{op.name} (op {op.index}) needs their number"
    counted = {axis: tracker.counted(s) for axis, s in enumerate(sizes[: len(made.shape)])}
    counted = {axis: terms for axis, terms in counted.items() if terms}
    if len(counted) == 1:
        ((axis, terms),) = counted.items()
        if len(terms) == 1 and terms[0][0] == 1 and len(terms[0][1]) == made.shape[axis]:
            shape = [1] * len(made.shape)
            shape[axis] = -1
            tracker.set(made, terms[0][1].reshape(shape))
            return
    for axis in counted:
        tracker.follow(sizes[axis], None, reason)


@rule(*CREATION)
def made_of_sizes(tracker: ChannelTracker, op: Op) -> None:
    """What elements are depends on how many there are."""
    for size in _flat((*op.args, *op.kwargs.values())):
        tracker.follow(size, None, f"{op.name} (op {op.index}) computes with their number")


def _flat(arguments: Any) -> list[Any]:
    return [i for a in arguments for i in (_flat(a) if isinstance(a, (tuple, list)) else [a])]
