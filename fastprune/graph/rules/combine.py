"""Ops that bring several tensors together: element by element (ties), side by side
(concatenation).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastprune.graph.channels import FIXED, ChannelTracker, Map
from fastprune.graph.program import Op, TracedDim, Value
from fastprune.graph.rules._table import rule

__all__ = ["ARITHMETIC"]


def broadcast_shape(op: Op) -> tuple[int, ...] | None:
    inputs = op.inputs
    shape, dtype = inputs[0].shape, inputs[0].dtype
    if not dtype.is_floating_point:
        return None  # the meta device knows what type comes out
    for value in inputs[1:]:
        if value.dtype is not dtype:
            return None
        if value.shape != shape:
            shape = np.broadcast_shapes(shape, value.shape)
    return shape


def _aligned(ids: Map, ndim: int) -> Map:
    return ids if ids.ndim == ndim else ids.reshape((1,) * (ndim - ids.ndim) + ids.shape)


def _merge(
    tracker: ChannelTracker, op: Op, a: Map, b: Map, a_value: Value, b_value: Value
) -> Map | None:
    """One map for two broadcast operands that both hold channels."""
    ndim = len(op.outputs[0].shape)
    a_shape = (1,) * (ndim - len(a_value.shape)) + a_value.shape
    b_shape = (1,) * (ndim - len(b_value.shape)) + b_value.shape
    if a.shape == b.shape and a.size > 1:
        tracker.tie(a, b)
        return a
    clash = False
    for axis in range(ndim):
        m, n = a.shape[axis], b.shape[axis]
        # A channel axis on one side must meet the same axis, or a size of one, on the other.
        if m != n and ((m > 1 and b_shape[axis] > 1) or (n > 1 and a_shape[axis] > 1)):
            clash = True
    both = any(m > 1 for m in a.shape) and any(n > 1 for n in b.shape)
    if clash or (both and a.shape != b.shape):
        reason = f"{op.name} (op {op.index}) combines channels along different axes"
        tracker.freeze(a, reason)
        tracker.freeze(b, reason)
        return None
    if a.size == 1 and b.size == 1:
        tracker.tie(a.reshape(-1), b.reshape(-1))
        return a
    wide, single = (a, b) if a.size > 1 else (b, a)
    tracker.freeze(
        single,
        f"a single channel that {op.name} (op {op.index}) applies to all of another tensor's",
    )
    return wide


def _meet_plain(tracker: ChannelTracker, op: Op, ids: Map, value: Value) -> None:
    """An operand without channels: harmless where its size is one, a slot where it is a parameter,
    else frozen.
    """
    axes = [axis for axis in range(ids.ndim) if ids.shape[axis] > 1]
    offset = ids.ndim - len(value.shape)
    wide = [axis for axis in axes if axis >= offset and value.shape[axis - offset] > 1]
    if not wide:
        tracker.fix(value, f"{op.name} (op {op.index}) spreads it over all channels")
        return
    if value.source in ("parameter", "buffer") and len(axes) == 1:
        role = "shift" if op.name in _LINEAR else "divisor"
        tracker.slot(role, wide[0] - offset, ids.reshape(-1), value)
        return
    what = value.name or f"a tensor of shape {list(value.shape)}"
    tracker.freeze(
        ids, f"{op.name} (op {op.index}) combines them with {what}, which has a fixed size"
    )
    tracker.fix(value, f"{op.name} (op {op.index}) computes with it")


ARITHMETIC = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "rdiv",
        "true_divide",
        "multiply",
        "subtract",
        "divide",
        "pow",
        "rpow",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "atan2",
        "floor_divide",
        "remainder",
        "fmod",
        "addcmul",
        "addcdiv",
        "lerp",
        "copysign",
        "hypot",
        "xlogy",
        "float_power",
        "rfloor_divide",
    ]
)
_COMPARISONS = [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "where",
    "masked_fill",
]
# What a mask may make zero in without making the result infinite.
_LINEAR = frozenset(
    ["add", "sub", "rsub", "mul", "multiply", "subtract", "addcmul", "lerp", "copy"]
)


@rule(*_COMPARISONS)
@rule(*ARITHMETIC, "expand_as", "mse_loss", "copy", shape=broadcast_shape)
def elementwise(tracker: ChannelTracker, op: Op) -> None:
    """Channels at equal positions are tied; a parameter operand gets a slot; numbers change
    nothing.
    """
    for number in op.args:
        if number.__class__ is TracedDim:
            tracker.follow(number, None, f"{op.name} (op {op.index}) computes with their number")
    ndim = len(op.outputs[0].shape)
    result: Map | None = None
    holder: Value | None = None
    plain: list[Value] = []
    for value in op.inputs:
        ids = tracker.map(value)
        if ids is None:
            plain.append(value)
        elif result is None or holder is None:
            result, holder = _aligned(ids, ndim), value
        elif ids is not result:
            other = _aligned(ids, ndim)
            result = _merge(tracker, op, result, other, holder, value)
            if result is None:
                break
            if result is other:
                holder = value
    if result is None and len(plain) == len(op.inputs):
        holder = next(
            (v for v in plain if v.shape == op.outputs[0].shape and tracker.adopt(v) is not None),
            None,
        )
        result = tracker.map(holder) if holder is not None else None
    if result is None:
        for value in op.inputs:
            tracker.fix(value, f"{op.name} (op {op.index}) computes with it")
    else:
        for value in plain:
            if value is not holder:
                _meet_plain(tracker, op, result, value)
    tracker.pass_on(op, result)


def _axis_of(op: Op) -> int:
    return int(op.arg(1, "dim", op.kwargs.get("axis", 0)))


def cat_shape(op: Op) -> tuple[int, ...]:
    parts = [v for v in op.arg(0, "tensors") if v.shape != (0,)]
    axis = _axis_of(op) % len(parts[0].shape)
    shape = list(parts[0].shape)
    shape[axis] = sum(v.shape[axis] for v in parts)
    return tuple(shape)


@rule("cat", "concat", "concatenate", shape=cat_shape)
def cat(tracker: ChannelTracker, op: Op) -> None:
    """Along the channel axis maps are joined; along another the parts' channels are tied."""
    parts: list[Value] = [v for v in op.arg(0, "tensors") if v.shape != (0,)]
    axis = _axis_of(op) % len(parts[0].shape)
    _join(tracker, op, parts, [tracker.map(v) for v in parts], axis)


def _join(
    tracker: ChannelTracker, op: Op, parts: list[Value], maps: list[Map | None], axis: int
) -> None:
    for value in parts:
        tracker.fix(value, f"{op.name} (op {op.index}) joins it to other tensors")
    held = [m for m in maps if m is not None]
    if not held:
        tracker.pass_on(op, None)
        return
    others = tuple(1 if i == axis else max(m.shape[i] for m in held) for i in range(held[0].ndim))
    if all(m.shape[i] == n for m in held for i, n in enumerate(others) if i != axis) and all(
        n == 1 for n in others
    ):
        filled = []
        for value, ids in zip(parts, maps, strict=True):
            shape = [1] * len(value.shape)
            shape[axis] = value.shape[axis]
            if ids is None:
                ids = np.full(shape, FIXED)
            elif ids.shape[axis] != shape[axis]:
                ids = np.broadcast_to(ids, shape)
            filled.append(ids)
        tracker.pass_on(op, np.concatenate(filled, axis=axis))
        return
    first = held[0]
    if any(m.shape != first.shape or m.shape[axis] > 1 for m in held) or len(held) < len(maps):
        for ids in held:
            tracker.freeze(
                ids, f"{op.name} (op {op.index}) joins tensors with different channel axes"
            )
        tracker.pass_on(op, None)
        return
    for ids in held[1:]:
        tracker.tie(first, ids)
    tracker.pass_on(op, first)


def stack_shape(op: Op) -> tuple[int, ...]:
    parts = op.arg(0, "tensors")
    shape = list(parts[0].shape)
    axis = _axis_of(op) % (len(shape) + 1)
    shape.insert(axis, len(parts))
    return tuple(shape)


@rule("stack", shape=stack_shape)
def stack(tracker: ChannelTracker, op: Op) -> None:
    """A new axis: the parts' channels are tied."""
    parts: list[Value] = list(op.arg(0, "tensors"))
    axis = _axis_of(op) % (len(parts[0].shape) + 1)
    maps: list[Any] = [tracker.map(v) for v in parts]
    for value in parts:
        tracker.fix(value, f"stack (op {op.index}) joins it to other tensors")
    held = [m for m in maps if m is not None]
    if len(held) < len(maps) or any(m.shape != held[0].shape for m in held):
        for ids in held:
            tracker.freeze(ids, f"stack (op {op.index}) joins them with a tensor of fixed size")
        tracker.pass_on(op, None)
        return
    for ids in held[1:]:
        tracker.tie(held[0], ids)
    tracker.pass_on(op, np.expand_dims(held[0], axis))
