"""Ops that treat every channel alone: activations, normalisation with fixed statistics, pooling,
dropout, resizing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastprune.graph.channels import ChannelTracker, Map, RawSlot
from fastprune.graph.program import Op, Value
from fastprune.graph.rules._table import rule

__all__ = ["ACTIVATIONS", "ADAPTIVE_POOLS", "POOLS"]


def same_shape(op: Op) -> tuple[int, ...]:
    return op.inputs[0].shape


ACTIVATIONS = (
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "silu",
    "mish",
    "gelu",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "sigmoid",
    "tanh",
    "softplus",
)
"""Common ones, which take time for every element."""

UNARY = [
    *ACTIVATIONS,
    "softsign",
    "softshrink",
    "hardshrink",
    "tanhshrink",
    "logsigmoid",
    "threshold",
    "rrelu",
    "dropout",
    "alpha_dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "feature_dropout",
    "neg",
    "abs",
    "positive",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "sqrt",
    "rsqrt",
    "square",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "atan",
    "erf",
    "erfc",
    "sign",
    "round",
    "floor",
    "ceil",
    "trunc",
    "frac",
    "clamp",
    "clip",
    "clamp_min",
    "clamp_max",
    "contiguous",
    "clone",
    "detach",
    "nan_to_num",
    "requires_grad",
    "data",
    "fill",
    "zero",
    "alias",
    "identity",
    "logit",
    "bernoulli",
]

# The meta device knows the type that comes out.
TYPED = [
    "float",
    "half",
    "double",
    "bfloat16",
    "int",
    "long",
    "bool",
    "to",
    "type",
    "type_as",
    "cpu",
    "cuda",
    "zeros_like",
    "ones_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "full_like",
    "logical_not",
    "isnan",
    "isinf",
    "isfinite",
    "bitwise_not",
]


@rule(*TYPED)
@rule(*UNARY, shape=same_shape)
def unary(tracker: ChannelTracker, op: Op) -> None:
    """The output has the first input's channels."""
    source = op.inputs[0]
    ids = tracker.map(source)
    if ids is None and source.name:
        ids = tracker.adopt(source)
        if ids is None:
            tracker.fix(source, f"{op.name} (op {op.index}) computes with it")
    if len(op.inputs) == 1:
        tracker.maps[op.outputs[0].id] = ids
        return
    for extra in op.inputs[1:]:
        tracker.freeze(
            tracker.map(extra), f"{op.name} (op {op.index}) has no rule for a second tensor"
        )
        tracker.fix(extra, f"{op.name} (op {op.index}) computes with it")
    tracker.pass_on(op, ids)


@rule("batch_norm", "instance_norm", shape=same_shape)
def per_channel_norm(tracker: ChannelTracker, op: Op) -> None:
    """Scale, shift and statistics follow the channels of axis 1; a selected norm reads only some
    of them.
    """
    mean, var = op.arg(1, "running_mean"), op.arg(2, "running_var")
    weight, bias = op.arg(3, "weight"), op.arg(4, "bias")
    x = op.inputs[0]
    ids = tracker.map(x)
    if ids is None or ids.shape[1] == 1:
        for value in (weight, bias, mean, var):
            if value is not None and value.shape[0] > 1:
                tracker.slot("norm", 0, None, value)
        if op.index not in tracker.selected:
            tracker.pass_on(op, ids)
            return
    if op.index in tracker.selected:
        _select(tracker, op, weight, mean, ids)
        return
    channels = tracker.axis(x, 1, op)
    tracker.slot("scale", 0, channels, weight)
    tracker.slot("norm", 0, channels, bias, mean, var)
    tracker.pass_on(op, ids)


def _select(
    tracker: ChannelTracker, op: Op, weight: Value | None, mean: Value | None, ids: Map | None
) -> None:
    """The norm layer stays whole; a ChannelSelect behind it keeps some of its channels, which are
    new ones. As published: every channel of the tensor that others read keeps its scale.
    """
    x, named = op.inputs[0], weight if weight is not None else mean
    if named is None:
        tracker.pass_on(op, ids)
        return
    name = named.name.rpartition(".")[0]
    tracker.freeze(ids, f"read through a channel select at {name}")
    channels = tracker.new(x.shape[1], name)
    # The slot names the module, where others name a parameter.
    tracker.slot("select", 1, channels, Value(-1, (1,), x.dtype, "buffer", name))
    if weight is not None and weight.source == "parameter":
        tracker.slots.append(RawSlot((weight.name,), 0, "selected scale", channels))
    shape = [1] * len(x.shape)
    shape[1] = -1
    tracker.pass_on(op, channels.reshape(shape))


@rule("group_norm", shape=same_shape)
def group_norm(tracker: ChannelTracker, op: Op) -> None:
    """Whole normalisation groups are kept or dropped: within one, every channel is in the others'
    statistics.
    """
    x, groups = op.inputs[0], int(op.arg(1, "num_groups"))
    weight, bias = op.arg(2, "weight"), op.arg(3, "bias")
    channels = tracker.axis(x, 1, op)
    if channels is not None:
        if groups == 1:
            tracker.freeze(channels, "group_norm with one group normalises over all its channels")
        elif getattr(tracker.owner(weight), "num_groups", None) != groups:
            tracker.freeze(channels, "group_norm without a module that holds its number of groups")
        else:
            tracker.tie_rows(channels.reshape(groups, -1))
    tracker.slot("scale", 0, channels, weight)
    tracker.slot("norm", 0, channels, bias)
    tracker.pass_on(op, tracker.map(x))


@rule("layer_norm", "rms_norm", shape=same_shape)
def layer_norm(tracker: ChannelTracker, op: Op) -> None:
    """Channels that are normalised over are frozen: dropping one changes the statistics of the
    others.
    """
    x = op.inputs[0]
    ids = tracker.map(x)
    if ids is not None:
        over = len(op.arg(1, "normalized_shape"))
        if math.prod(ids.shape[len(ids.shape) - over :]) > 1:
            tracker.freeze(ids, f"{op.name} normalises over these channels")
    for value in op.inputs[1:]:
        tracker.fix(value, f"{op.name} normalises over these channels")
    tracker.pass_on(op, ids)


@rule("local_response_norm", "normalize", "cosine_similarity", shape=same_shape)
def across_channels(tracker: ChannelTracker, op: Op) -> None:
    ids = tracker.map(op.inputs[0])
    if ids is None:
        return
    if op.name == "normalize" and ids.shape[op.arg(2, "dim", 1)] == 1:
        tracker.pass_on(op, ids)
        return
    tracker.stop(op, f"{op.name} computes across these channels")


@rule(
    "softmax",
    "log_softmax",
    "softmin",
    "gumbel_softmax",
    "cumsum",
    "cumprod",
    "sort",
    "argsort",
    "flip",
    "cummax",
)
@rule("topk", "logcumsumexp")
def along_one_axis(tracker: ChannelTracker, op: Op) -> None:
    """Fine along other axes; along the channel axis every channel depends on the others."""
    ids = tracker.map(op.inputs[0])
    if ids is None:
        return
    dim = op.arg(2 if op.name == "topk" else 1, "dim", op.kwargs.get("dims", -1))
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if dim is None or any(ids.shape[d] > 1 for d in dims):
        tracker.stop(op, f"{op.name} runs along these channels")
    else:
        tracker.pass_on(op, ids)


def _tuple(value: Any, count: int) -> tuple[int, ...]:
    return (int(value),) * count if isinstance(value, int) else tuple(int(v) for v in value)


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (reach + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (out - 1) * stride >= size + padding:
        out -= 1  # the last window must start inside the image or the left padding
    return out


def pool_shape(op: Op) -> tuple[int, ...] | None:
    shape = op.inputs[0].shape
    count = int(op.name[-2]) if op.name[-1] == "d" else 2
    kernel = _tuple(op.arg(1, "kernel_size"), count)
    stride = op.arg(2, "stride")
    stride = kernel if stride is None or stride == [] else _tuple(stride, count)
    padding = _tuple(op.arg(3, "padding", 0), count)
    is_max = op.name.startswith("max")
    dilation = _tuple(op.arg(4, "dilation", 1), count) if is_max else (1,) * count
    ceil = bool(op.arg(5 if is_max else 4, "ceil_mode", False))
    if is_max and op.arg(6, "return_indices", False):
        return None
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None
    sizes = zip(shape[-count:], kernel, stride, padding, dilation, strict=True)
    space = [_pooled(n, k, s, p, d, ceil) for n, k, s, p, d in sizes]
    return (*shape[:-count], *space) if min(space) > 0 else None


def adaptive_shape(op: Op) -> tuple[int, ...] | None:
    shape = op.inputs[0].shape
    count = int(op.name[-2])
    want = op.arg(1, "output_size")
    want = (want,) * count if isinstance(want, int) or want is None else tuple(want)
    if op.name.startswith("adaptive_max") and op.arg(2, "return_indices", False):
        return None
    have = shape[-count:]
    return (
        *shape[:-count],
        *(int(h if w is None else w) for w, h in zip(want, have, strict=True)),
    )


def _spatial(tracker: ChannelTracker, op: Op, count: int) -> None:
    ids = tracker.map(op.inputs[0])
    if ids is not None and any(n > 1 for n in ids.shape[-count:]):
        tracker.stop(op, f"{op.name} runs along these channels")
        return
    tracker.pass_on(op, ids)


POOLS = tuple(f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3))
ADAPTIVE_POOLS = tuple(f"adaptive_{name}" for name in POOLS)


@rule(*POOLS, shape=pool_shape)
@rule(*ADAPTIVE_POOLS, shape=adaptive_shape)
@rule(
    "lp_pool1d",
    "lp_pool2d",
    "max_pool1d_with_indices",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
)
@rule(
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices", "fractional_max_pool2d"
)
def pool(tracker: ChannelTracker, op: Op) -> None:
    """Channels pass through."""
    digits = [c for c in op.name if c.isdigit()]
    _spatial(tracker, op, int(digits[0]) if digits else 2)


@rule("max_unpool1d", "max_unpool2d", "max_unpool3d")
def unpool(tracker: ChannelTracker, op: Op) -> None:
    """Channels pass through; the positions come from a pooling of the same channels."""
    ids, positions = tracker.map(op.inputs[0]), tracker.map(op.inputs[1])
    if ids is None or positions is None or ids.shape != positions.shape:
        tracker.stop(op, f"{op.name} (op {op.index}) takes positions from another tensor")
        return
    tracker.tie(ids, positions)
    _spatial(tracker, op, len(op.inputs[0].shape) - 2)


@rule("interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "grid_sample")
def resize(tracker: ChannelTracker, op: Op) -> None:
    """Channels pass through; a sampling grid with channels of its own is frozen."""
    for extra in op.inputs[1:]:
        tracker.freeze(tracker.map(extra), f"{op.name} reads them as coordinates")
    _spatial(tracker, op, len(op.inputs[0].shape) - 2)


@rule("prelu", shape=same_shape)
def prelu(tracker: ChannelTracker, op: Op) -> None:
    x, weight = op.inputs[0], op.arg(1, "weight")
    if math.prod(weight.shape) > 1:
        tracker.slot("norm", 0, tracker.axis(x, 1, op), weight)
    tracker.pass_on(op, tracker.map(x))


def glu_shape(op: Op) -> tuple[int, ...]:
    shape = list(op.inputs[0].shape)
    shape[op.arg(1, "dim", -1)] //= 2
    return tuple(shape)


@rule("glu", shape=glu_shape)
def glu(tracker: ChannelTracker, op: Op) -> None:
    """Channel i of the first half gates with channel i of the second: they are tied."""
    ids = tracker.map(op.inputs[0])
    if ids is None:
        return
    dim = op.arg(1, "dim", -1)
    if ids.shape[dim] == 1:
        tracker.pass_on(op, ids)
        return
    first, second = np.split(ids, 2, axis=dim)
    tracker.tie(first, second)
    tracker.pass_on(op, first)
