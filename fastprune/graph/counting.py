"""The counting rules of published tables, so that their rows can be compared. The engine itself
counts MACs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import FastpruneError, nearest
from fastprune.graph.channel_graph import ChannelGraph
from fastprune.graph.plan import PruningPlan
from fastprune.graph.program import Op, Value
from fastprune.records import Cost

__all__ = ["Counting", "count", "pruned_shape"]

Counting = Literal["macs", "thop", "ptflops", "metapruning"]


def count(graph: ChannelGraph, plan: PruningPlan | None = None, counting: str = "macs") -> Cost:
    """The cost of the network (or of what ``plan`` leaves) with ``macs`` counted by a published
    rule.

    Args:
        graph: the network's channel graph.
        plan: counts the pruned network.
        counting: ``macs`` convolutions and linear layers, exactly. ``thop`` (0.0.31): convolution
            out·(K²·Cin/g + bias), batch norm 4·numel, linear (2·in − 1)·out, average pooling (K² +
            1)·out. ``ptflops``: convolution MACs and bias, linear MACs, batch norm 2·numel,
            pooling numel of its input. ``metapruning``: the published search's limit; convolution
            and linear MACs and bias, batch norm numel, pooling with a kernel K² a value it gives.

    Raises:
        FastpruneError: an unknown rule.
    """
    if counting not in get_args(Counting):
        raise FastpruneError(
            f"counting: unknown rule {counting!r}{nearest(counting, get_args(Counting))}"
        )
    cost = graph.cost(plan)
    if counting == "macs":
        return cost
    stays = np.ones(graph.total + 1, bool) if plan is None else graph.kept(plan)
    rule = {"thop": _thop, "ptflops": _ptflops, "metapruning": _metapruning}[counting]
    macs = sum(rule(graph, op, stays) for op in graph.program.ops)
    return dataclasses.replace(cost, macs=macs)


def pruned_shape(
    shape: tuple[int, ...], channels: NDArray[np.int64] | None, stays: NDArray[np.bool_]
) -> tuple[int, ...]:
    """A value's shape after pruning, from its channel map and whether each channel stays."""
    if channels is None or channels.size == 1:
        return tuple(shape)
    kept = stays[channels]
    if kept.all():
        return tuple(shape)
    sizes = list(shape)
    for axis, size in enumerate(channels.shape):
        if size > 1:
            sizes[axis] = int(kept.any(axis=tuple(i for i in range(kept.ndim) if i != axis)).sum())
    return tuple(sizes)


def _numel(graph: ChannelGraph, value: Value, stays: NDArray[np.bool_]) -> int:
    return math.prod(pruned_shape(value.shape, graph.maps[value.id], stays))


def _weight_shape(graph: ChannelGraph, op: Op, stays: NDArray[np.bool_]) -> tuple[int, ...]:
    weight = op.inputs[1]
    shape = list(weight.shape)
    for slot in graph.slots:
        if weight.name in slot.parameters:
            shape[slot.dim] = int(stays[slot.channels].sum())
    return tuple(shape)


def _layer(graph: ChannelGraph, op: Op, stays: NDArray[np.bool_]) -> tuple[int, int, bool]:
    """Output elements, multiplications for one of them, and whether a bias is added."""
    shape = _weight_shape(graph, op, stays)
    per_output = math.prod(shape[1:])
    if op.name.startswith("conv_transpose"):
        # Dimension 0 holds the inputs of all conv groups; where whole groups go, each keeps its
        # own.
        whole = any(op.inputs[1].name in s.parameters for s in graph.slots if s.role == "group")
        inputs = op.inputs[1].shape[0] if whole else shape[0]
        per_output = inputs * math.prod(shape[2:]) // int(op.arg(6, "groups", 1))
    return _numel(graph, op.outputs[0], stays), per_output, op.arg(2, "bias") is not None


def _thop(graph: ChannelGraph, op: Op, stays: NDArray[np.bool_]) -> int:
    if op.name.startswith("conv"):
        outputs, per_output, bias = _layer(graph, op, stays)
        return outputs * (per_output + bias)
    if op.name == "linear":
        outputs, per_output, _ = _layer(graph, op, stays)
        return outputs * (2 * per_output - 1)
    if op.name == "batch_norm":
        return 4 * _numel(graph, op.inputs[0], stays)
    if op.name.startswith("avg_pool") and len(op.args) < 4:
        # thop sees modules alone; nn.AvgPool hands on all its arguments, code by hand does not.
        return 0
    if "avg_pool" in op.name:
        before, after = op.inputs[0].shape[2:], op.outputs[0].shape[2:]
        kernel: Any = op.arg(1, "kernel_size")
        if op.name.startswith("adaptive"):
            window = math.prod(n // m for n, m in zip(before, after, strict=True))
        else:
            window = kernel ** len(before) if isinstance(kernel, int) else math.prod(kernel)
        return (window + 1) * _numel(graph, op.outputs[0], stays)
    return 0


def _ptflops(graph: ChannelGraph, op: Op, stays: NDArray[np.bool_]) -> int:
    if op.name.startswith("conv"):
        outputs, per_output, bias = _layer(graph, op, stays)
        return outputs * (per_output + bias)
    if op.name == "linear":
        outputs, per_output, _ = _layer(graph, op, stays)
        return outputs * per_output
    if op.name == "batch_norm":
        return 2 * _numel(graph, op.inputs[0], stays)
    if "pool" in op.name:
        return _numel(graph, op.inputs[0], stays)
    return 0


def _metapruning(graph: ChannelGraph, op: Op, stays: NDArray[np.bool_]) -> int:
    if op.name.startswith("conv") or op.name == "linear":
        outputs, per_output, bias = _layer(graph, op, stays)
        return outputs * (per_output + bias)
    if op.name == "batch_norm":
        return _numel(graph, op.inputs[0], stays)
    if "pool" in op.name and not op.name.startswith("adaptive"):
        kernel: Any = op.arg(1, "kernel_size")
        spatial = len(op.inputs[0].shape) - 2
        window: int = kernel**spatial if isinstance(kernel, int) else math.prod(kernel)
        return window * _numel(graph, op.outputs[0], stays)
    return 0
