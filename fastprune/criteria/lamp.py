"""Layer-adaptive magnitude."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastprune.criteria._scores import Scores, join_slots, norms, registry
from fastprune.graph import ChannelGraph

__all__ = ["lamp"]


@registry.register("lamp")
def lamp(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Σw² of a channel over the sum of Σw² of the group's channels that are at least as large.

    Lee et al., *Layer-Adaptive Sparsity for the Magnitude-Based Pruning*, ICLR 2021, for channels
    instead of single weights. Σw² is the mean over slots (out and in). The largest channel of a
    group scores 1, so no group is emptied before others; no further normalisation.
    """

    squares = norms(model, graph, lambda s: (s.out_square, s.in_square))
    scores = join_slots(model, graph, squares, normalize=False)
    return {name: _adaptive(values) for name, values in scores.items()}


def _adaptive(values: Tensor) -> Tensor:
    ascending, order = torch.sort(values.double(), stable=True)
    at_least = ascending.flip(0).cumsum(0).flip(0)
    relative = ascending / at_least.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.empty_like(relative).scatter_(0, order, relative).float()
