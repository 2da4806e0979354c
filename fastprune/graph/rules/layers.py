"""Convolutions, transposed convolutions and linear layers: where channels are made and read."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.nn.modules.conv import _ConvNd

from fastprune.errors import GraphError
from fastprune.graph.channels import ChannelTracker, LayerCall, Map
from fastprune.graph.program import Op, TracedDim, Value
from fastprune.graph.rules._table import rule

__all__ = ["GROUPING"]

# Attribute of a pruned grouped convolution: whether its conv groups are dropped "whole" or get
# narrower "within".
GROUPING = "_fastprune_grouping"


def _per_axis(value: Any, count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (int(value),) * count
    items = tuple(int(v) for v in value)
    return items * count if len(items) == 1 else items


def conv_shape(op: Op) -> tuple[int, ...] | None:
    x, weight = op.inputs[0].shape, op.inputs[1].shape
    count = len(weight) - 2
    groups = op.arg(6, "groups", 1)
    if len(op.args) == 7 and count == 2 and len(x) == 4 and x[1] == weight[1] * groups:
        # What nn.Conv2d passes, written out: it is half of all calls.
        _, _, _, stride, padding, dilation, _ = op.args
        if (
            stride.__class__ is padding.__class__ is dilation.__class__ is tuple
            and len(padding) == 2
        ):
            height = (x[2] + 2 * padding[0] - dilation[0] * (weight[2] - 1) - 1) // stride[0] + 1
            width = (x[3] + 2 * padding[1] - dilation[1] * (weight[3] - 1) - 1) // stride[1] + 1
            if height > 0 and width > 0:
                return (x[0], weight[0], height, width)
    if len(x) != count + 2:
        return None  # without a batch: the meta device knows
    if x[1] != weight[1] * groups:
        raise GraphError(
            f"{op.name} (op {op.index}): weight {list(weight)} with {groups} groups expects "
            f"{weight[1] * groups} "
            f"input channels, got {x[1]}"
        )
    padding = op.arg(4, "padding", 0)
    stride, dilation = (
        _per_axis(op.arg(3, "stride", 1), count),
        _per_axis(op.arg(5, "dilation", 1), count),
    )
    if padding == "same":
        return (x[0], weight[0], *x[2:])
    padding = (0,) * count if padding == "valid" else _per_axis(padding, count)
    space = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x[2:], padding, dilation, weight[2:], stride, strict=True)
    ]
    if min(space) <= 0:
        raise GraphError(
            f"{op.name} (op {op.index}): the kernel {list(weight[2:])} is larger than the padded "
            f"input {list(x[2:])}"
        )
    return (x[0], weight[0], *space)


def transposed_shape(op: Op) -> tuple[int, ...] | None:
    x, weight = op.inputs[0].shape, op.inputs[1].shape
    count = len(weight) - 2
    if len(x) != count + 2:
        return None
    if x[1] != weight[0]:
        raise GraphError(
            f"{op.name} (op {op.index}): expects {weight[0]} input channels, got {x[1]}"
        )
    stride, padding = (
        _per_axis(op.arg(3, "stride", 1), count),
        _per_axis(op.arg(4, "padding", 0), count),
    )
    extra, dilation = (
        _per_axis(op.arg(5, "output_padding", 0), count),
        _per_axis(op.arg(7, "dilation", 1), count),
    )
    space = (
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(
            x[2:], stride, padding, dilation, weight[2:], extra, strict=True
        )
    )
    return (x[0], weight[1] * op.arg(6, "groups", 1), *space)


@rule("conv1d", "conv2d", "conv3d", shape=conv_shape)
def conv(tracker: ChannelTracker, op: Op) -> None:
    """Makes channels on axis 1, reads those of axis 1. With groups, whole conv groups are kept or
    dropped.
    """
    _convolution(tracker, op, groups=op.arg(6, "groups", 1), transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", shape=transposed_shape)
def conv_transposed(tracker: ChannelTracker, op: Op) -> None:
    """The same with the weight's first two dimensions exchanged."""
    _convolution(tracker, op, groups=op.arg(6, "groups", 1), transposed=True)


def _convolution(tracker: ChannelTracker, op: Op, *, groups: int, transposed: bool) -> None:
    x, weight = op.inputs[0], op.inputs[1]
    bias = op.arg(2, "bias")
    made = op.outputs[0]
    axis = len(made.shape) - len(weight.shape) + 1  # 0 without a batch
    inputs = tracker.axis(x, axis, op)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    outputs: Map | None = None
    if weight.source not in ("parameter", "buffer"):
        outputs = _computed(tracker, op, inputs, made.shape[axis])
        inputs = None
    elif groups == 1 and getattr(tracker.owner(weight), GROUPING, None) != "whole":
        outputs = _outputs(tracker, weight, out_dim, made.shape[axis])
        tracker.slot("out", out_dim, outputs, weight)
        tracker.slot("in", in_dim, inputs, weight)
        tracker.slot("bias", 0, outputs, bias)
    elif inputs is not None and _by_whole_groups(tracker, op, inputs, groups):
        outputs = _whole_groups(tracker, op, inputs, groups)
        inputs = None
    else:
        outputs, inputs = _within_groups(tracker, op, inputs, groups, out_dim)
    tracker.layers.append(LayerCall("conv", op, outputs, inputs))
    tracker.set(made, outputs.reshape((1,) * axis + (-1,) + (1,) * (len(weight.shape) - 2)))


def _computed(tracker: ChannelTracker, op: Op, inputs: Map | None, count: int) -> Map:
    """A weight made in the forward pass (weight norm, standardised or generated weights) fixes
    both of its sides.
    """
    reason = f"the weight of {op.name} (op {op.index}) is computed in the forward pass"
    tracker.freeze(inputs, reason)
    for value in op.inputs[1:]:
        tracker.freeze(tracker.map(value), reason)
        tracker.fix(value, reason)
    outputs = tracker.new(
        count, tracker.layer_behind(op.inputs[1]) or f"{op.name} (op {op.index})"
    )
    tracker.freeze(outputs, reason)
    return outputs


def _outputs(tracker: ChannelTracker, weight: Value, dim: int, count: int) -> Map:
    """New channels; those of the first use where the layer is used again."""
    before = tracker.reused(weight, dim)
    return (
        before
        if before is not None
        else tracker.new(count, weight.name.rpartition(".")[0] or weight.name)
    )


def _width(op: Op, groups: int) -> int:
    """Output channels of a convolution."""
    weight = op.inputs[1].shape
    return weight[1] * groups if op.name.startswith("conv_transpose") else weight[0]


def _by_whole_groups(tracker: ChannelTracker, op: Op, inputs: Map, groups: int) -> bool:
    """Whether conv groups are dropped whole, or every one of them gets narrower: whichever gives
    more choice.

    A pruned layer goes on as it began, so that the channel groups of gradual pruning stay the
    same.
    """
    weight = op.inputs[1]
    module = tracker.owner(weight)
    counts = isinstance(module, _ConvNd) and module.groups == groups
    if not counts and not isinstance(groups, TracedDim):
        return False
    before = getattr(module, GROUPING, None)
    if before is not None:
        return bool(before == "whole")
    return groups >= min(inputs.size, _width(op, groups)) // groups


def _whole_groups(tracker: ChannelTracker, op: Op, inputs: Map, groups: int) -> Map:
    """Conv group j reads its own inputs only: all of them and all its outputs are one unit.

    The dimension that the weight shares between groups keeps its size; the other one holds the
    units.
    """
    weight = op.inputs[1]
    outputs = _outputs(tracker, weight, -1, _width(op, groups))
    tracker.by_dim.setdefault((weight.name, -1), outputs)
    # Dimension 0 of the weight is the outputs of a convolution, the inputs of a transposed one.
    tracker.slot("group", 0, inputs if op.name.startswith("conv_transpose") else outputs, weight)
    tracker.slot("bias", 0, outputs, op.arg(2, "bias"))
    tracker.tie_rows(
        np.concatenate([inputs.reshape(groups, -1), outputs.reshape(groups, -1)], axis=1)
    )
    if isinstance(groups, TracedDim):
        reason = f"{op.name} (op {op.index}) has another number of groups than these"
        tracker.follow(groups, outputs.reshape(groups, -1)[:, 0], reason)
    return outputs


def _within_groups(
    tracker: ChannelTracker, op: Op, inputs: Map | None, groups: int, out_dim: int
) -> tuple[Map, Map | None]:
    """Channel j of every conv group is one unit, on either side; the number of groups stays.

    Of the dimension that the weight shares between groups, the first group's channels stand for
    all.
    """
    weight = op.inputs[1]
    outputs = _outputs(tracker, weight, -1, _width(op, groups))
    tracker.by_dim.setdefault((weight.name, -1), outputs)
    rows = outputs.reshape(groups, -1)
    tracker.tie_rows(rows.T)
    tracker.slot("out", out_dim, outputs if out_dim == 0 else rows[0], weight)
    tracker.slot("bias", 0, outputs, op.arg(2, "bias"))
    if inputs is None:
        tracker.slot("in", 1 - out_dim, None, weight)
        return outputs, None
    columns = inputs.reshape(groups, -1)
    tracker.tie_rows(columns.T)
    tracker.slot("in", 1 - out_dim, inputs if out_dim == 1 else columns[0], weight)
    return outputs, columns[0]


def linear_shape(op: Op) -> tuple[int, ...]:
    x, weight = op.inputs[0].shape, op.inputs[1].shape
    if len(weight) != 2:
        return x[:-1]
    if x[-1] != weight[1]:
        raise GraphError(
            f"linear (op {op.index}): expects {weight[1]} input features, got {x[-1]}"
        )
    return (*x[:-1], weight[0])


@rule("linear", shape=linear_shape)
def linear(tracker: ChannelTracker, op: Op) -> None:
    """Reads the last axis, makes the last axis."""
    _product(tracker, op, op.inputs[0], op.inputs[1], op.arg(2, "bias"), in_dim=1)


def _product(
    tracker: ChannelTracker, op: Op, x: Value, weight: Value, bias: Value | None, *, in_dim: int
) -> None:
    inputs = tracker.axis(x, -1, op)
    made = op.outputs[0]
    if len(weight.shape) != 2 or (weight.source not in ("parameter", "buffer")):
        outputs = _computed(tracker, op, inputs, made.shape[-1] if len(weight.shape) == 2 else 1)
        inputs = None
    else:
        outputs = _outputs(tracker, weight, 1 - in_dim, weight.shape[1 - in_dim])
        tracker.slot("out", 1 - in_dim, outputs, weight)
        tracker.slot("in", in_dim, inputs, weight)
        tracker.slot("bias", 0, outputs, bias)
    if len(weight.shape) == 2:
        tracker.layers.append(LayerCall("linear", op, outputs, inputs))
        tracker.set(made, outputs.reshape((1,) * (len(made.shape) - 1) + (-1,)))


@rule("matmul", "mm", "bmm", "rmatmul")
def matmul(tracker: ChannelTracker, op: Op) -> None:
    """By a matrix parameter it is a linear layer; of two activations it mixes both."""
    if op.name != "rmatmul" and len(op.inputs) == 2:
        x, weight = op.inputs
        if weight.source == "parameter" and len(weight.shape) == 2 and x.source in ("op", "input"):
            _product(tracker, op, x, weight, None, in_dim=0)
            return
    tracker.stop(op, f"{op.name} (op {op.index}) mixes these channels")


@rule("addmm")
def addmm(tracker: ChannelTracker, op: Op) -> None:
    """A linear layer whose weight lies the other way, where nothing is scaled."""
    bias, x, weight = op.inputs[:3]
    plain = op.kwargs.get("beta", 1) == op.kwargs.get("alpha", 1) == 1 and len(bias.shape) == 1
    if plain and weight.source == "parameter" and x.source in ("op", "input"):
        _product(tracker, op, x, weight, bias, in_dim=0)
    else:
        tracker.stop(op, f"addmm (op {op.index}) mixes these channels")


@rule("embedding")
def embedding(tracker: ChannelTracker, op: Op) -> None:
    """Makes the last axis; what is looked up is no channel."""
    weight = op.inputs[1]
    tracker.freeze(
        tracker.map(op.inputs[0]), f"embedding (op {op.index}) reads them as row numbers"
    )
    if weight.source != "parameter" or op.arg(3, "max_norm") is not None:
        tracker.stop(op, f"embedding (op {op.index}) normalises or computes its rows")
        return
    outputs = _outputs(tracker, weight, 1, weight.shape[1])
    tracker.slot("out", 1, outputs, weight)
    tracker.slot("in", 0, None, weight)
    made = op.outputs[0]
    tracker.set(made, outputs.reshape((1,) * (len(made.shape) - 1) + (-1,)))
