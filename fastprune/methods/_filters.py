"""The filters of convolutions: which weights make one, and which channel it writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastprune.errors import GraphError, nearest
from fastprune.graph import ChannelGraph
from fastprune.graph.program import Op, Program

__all__ = ["Filters", "channel_sums", "convolutions", "filters_of"]


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution.

    Attributes:
        weight: its parameter.
        channels: int64 ``[filters]``, the number in the graph of the channel that each writes
            (``graph.total`` where nothing can be dropped). Several filters of a grouped
            convolution may share one.
        groups: conv groups.
        transposed: whether it is a transposed convolution.
    """

    weight: str
    channels: NDArray[np.int64]
    groups: int
    transposed: bool

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as ``[filters, weights of a filter]``."""
        if not self.transposed:
            return tensor.flatten(1)
        # [inputs, outputs of a conv group, *kernel]: each conv group has rows of its own.
        inputs, outputs = tensor.shape[:2]
        split = tensor.reshape(self.groups, inputs // self.groups, outputs, -1)
        return split.transpose(1, 2).reshape(self.groups * outputs, -1)

    def sums(self, tensor: Tensor) -> Tensor:
        """float64 ``[filters]`` on the CPU: the sum over each filter's entries of ``tensor``."""
        return self.rows(tensor).double().sum(1).cpu()


def convolutions(program: Program) -> Iterator[Op]:
    """The calls of convolutions, transposed ones included, in the order they run."""
    return (op for op in program.ops if op.name.startswith("conv"))


def filters_of(graph: ChannelGraph, names: Iterable[str]) -> dict[str, Filters]:
    """The filters of the convolutions with these weights, in the order of ``names``.

    Raises:
        GraphError: a name is not the weight of a convolution of the network.
    """
    found: dict[str, Filters] = {}
    for op in convolutions(graph.program):
        weight, made = op.inputs[1], op.outputs[0]
        numbers = graph.maps[made.id]
        if weight.source != "parameter" or weight.name in found or numbers is None:
            continue
        groups = int(op.arg(6, "groups", 1))
        found[weight.name] = Filters(
            weight.name, numbers.reshape(-1), groups, op.name.startswith("conv_transpose")
        )
    chosen = {}
    for name in names:
        if name not in found:
            hint = nearest(name, found)
            raise GraphError(f"{name!r}: is not the weight of a convolution of this network{hint}")
        chosen[name] = found[name]
    return chosen


def channel_sums(graph: ChannelGraph, filters: Filters, values: Tensor) -> NDArray[np.float64]:
    """``[total + 1]``: values of filters ``[filters]``, summed by the channel that they write."""
    return np.bincount(
        filters.channels, values.double().cpu().numpy(), minlength=graph.total + 1
    ).astype(np.float64)
