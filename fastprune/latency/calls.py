"""The calls of a traced network whose time depends on its widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastprune.graph import ChannelGraph
from fastprune.graph.channels import Layer, Map
from fastprune.graph.cost import width_form
from fastprune.graph.program import Op, Value
from fastprune.graph.rules.pointwise import ACTIVATIONS, ADAPTIVE_POOLS, POOLS
from fastprune.latency.table import LayerKind

__all__ = ["Call", "calls_of", "matrix_calls"]

Form = NDArray[np.float64]

_MATRICES = ("conv1d", "conv2d", "conv3d", "linear")
"""Layers with two widths; transposed ones and products of activations are in the overhead."""

_LINES = frozenset(
    [
        *("batch_norm", "instance_norm", "prelu", *ACTIVATIONS),
        *("add", "sub", "mul", "div", "cat", "concat", "pad", "mean", "interpolate"),
        *(*POOLS, *ADAPTIVE_POOLS),
    ]
)
"""What moves every channel through memory: time goes with one width. Views take none, and what is
not named here is in the overhead, which is measured on whole networks."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call.

    Attributes:
        kind: what it has in common with calls that take as long.
        op: one that was traced.
        inputs, outputs: its widths as linear forms ``[1 + groups]`` of the groups' widths; None
            where the kind's is 0.
    """

    kind: LayerKind
    op: Op
    inputs: Form | None
    outputs: Form | None


def calls_of(graph: ChannelGraph, batch: int) -> tuple[Call, ...]:
    """Every call whose time is in the table, in order.

    Args:
        graph: of the network.
        batch: images at a time, whatever the traced example has.
    """
    layers = {layer.op: layer for layer in graph.layers}
    traced = graph.program.inputs[0].shape[0] if graph.program.inputs[0].shape else 1
    found = []
    for op in graph.program.ops:
        layer = layers.get(op.index)
        if layer is not None and op.name in _MATRICES:
            call = _matrix(graph, op, layer, (batch, traced))
        elif layer is None and op.name in _LINES:
            call = _line(graph, op, (batch, traced))
        else:
            continue
        if call is not None:
            found.append(call)
    return tuple(found)


def matrix_calls(calls: Sequence[Call]) -> list[Call]:
    """Of several calls those of dense layers both of whose widths vary."""
    return [call for call in calls if call.kind.inputs and call.kind.outputs]


def _matrix(graph: ChannelGraph, op: Op, layer: Layer, batch: tuple[int, int]) -> Call | None:
    """A convolution or linear layer."""
    x, weight = op.inputs[:2]
    convolution = layer.kind == "conv"
    groups = int(op.arg(6, "groups", 1)) if convolution else 1
    inputs, outputs = _form(graph, layer.inputs), _form(graph, layer.outputs)
    if groups > 1:
        # Whole groups of the convolution go: input and output follow one width.
        inputs = None
    if inputs is None and outputs is None:
        return None
    grows_in = "o" if groups > 1 else "i" if inputs is not None else ""
    grows_out = "o" if outputs is not None else ""
    axis = 1 - len(weight.shape) if convolution else -1
    shapes, dims = [], []
    for value in op.inputs:
        shape = _batched(value, batch)
        row = [""] * len(shape)
        if value is x:
            row[axis] = grows_in
        elif value is weight:
            row[0], row[1] = grows_out, "" if groups > 1 else grows_in
        else:
            row[0] = grows_out
        shapes.append(shape)
        dims.append(tuple(row))
    kind = LayerKind(
        op.name,
        tuple(shapes),
        tuple(dims),
        _detail(op, "*" if groups > 1 else None),
        layer.input_width if inputs is not None else 0,
        layer.output_width if outputs is not None else 0,
        layer.output_width // groups if groups > 1 else 1,
    )
    return Call(kind, op, inputs, outputs)


def _line(graph: ChannelGraph, op: Op, batch: tuple[int, int]) -> Call | None:
    """A call that treats every channel alike."""
    # The largest of what it reads and makes is what takes time: a mean makes little of much.
    about = [value for value in (*op.outputs, *op.inputs) if _axis(graph, value) is not None]
    if not about:
        return None
    widest = max(about, key=lambda value: int(np.prod(value.shape)))
    axis = _axis(graph, widest)
    channels = graph.maps[widest.id]
    if axis is None or channels is None:
        return None
    width = widest.shape[axis]
    form = _form(graph, np.moveaxis(channels, axis, 0).reshape(width, -1)[:, 0])
    if form is None:
        return None
    shapes, dims = [], []
    for value in op.inputs:
        shape, here = _batched(value, batch), _axis(graph, value)
        row = [""] * len(shape)
        if here is not None:
            row[here] = "o"
        elif value.source in ("parameter", "buffer"):
            row = ["o" if size == width else "" for size in shape]
        shapes.append(shape)
        dims.append(tuple(row))
    kind = LayerKind(op.name, tuple(shapes), tuple(dims), _detail(op, None), 0, width)
    return Call(kind, op, None, form)


def _axis(graph: ChannelGraph, value: Value) -> int | None:
    """The one axis that holds a value's channels, if there is one."""
    channels = graph.maps[value.id] if value.id < len(graph.maps) else None
    if channels is None:
        return None
    axes = [axis for axis, size in enumerate(channels.shape) if size > 1]
    return axes[0] if len(axes) == 1 else None


def _form(graph: ChannelGraph, channels: Map | None) -> Form | None:
    """The width as a form; None where it does not vary."""
    if channels is None:
        return None
    form = width_form(graph, channels)
    return form if form[1:].any() else None


def _batched(value: Value, batch: tuple[int, int]) -> tuple[int, ...]:
    """The shape for as many images as are asked for."""
    shape = tuple(map(int, value.shape))
    if value.source not in ("input", "op") or not shape:
        return shape
    wanted, traced = batch
    return (shape[0] * wanted // traced, *shape[1:])


def _detail(op: Op, groups: str | None) -> str:
    """The arguments that are no tensors, as text; of grouped layers the number varies."""

    def plain(given: Any, place: int | str) -> Any:
        if groups is not None and place in (6, "groups"):
            return groups
        if isinstance(given, Value):
            return "%"
        if isinstance(given, (list, tuple)):
            return [plain(item, "") for item in given]
        return given

    places = [repr(plain(given, place)) for place, given in enumerate(op.args)]
    names = [f"{name}={plain(given, name)!r}" for name, given in sorted(op.kwargs.items())]
    return ", ".join(places + names)
