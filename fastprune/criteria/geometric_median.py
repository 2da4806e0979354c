"""Distance from the layer's other filters (FPGM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastprune.criteria._scores import Scores, join_slots, registry
from fastprune.graph import ChannelGraph

__all__ = ["geometric_median"]


@registry.register("geometric_median")
def geometric_median(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Sum of Euclidean distances to the layer's other filters, mean over slots, divided by the
    group's mean.

    He et al., *Filter Pruning via Geometric Median*, CVPR 2019: a filter near the geometric median
    of its layer is replaceable by the rest. Only the filters that make the channel count (out
    side), as published.
    """

    def distances(parameter: Tensor, dim: int, name: str) -> Tensor:
        filters = parameter.float().movedim(dim, 0).flatten(1)
        return torch.cdist(filters, filters).sum(1)

    return join_slots(model, graph, distances, roles=("out", "group"))
