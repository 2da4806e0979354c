"""Square root of Σw² of a channel's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastprune.criteria._scores import Scores, join_slots, other_dims, registry
from fastprune.graph import ChannelGraph

__all__ = ["l2"]


@registry.register("l2")
def l2(model: nn.Module, graph: ChannelGraph) -> Scores:
    """√Σw² of each channel's weights, mean over its slots (out and in), divided by the group's mean."""

    def norm(parameter: Tensor, dim: int, name: str) -> Tensor:
        return torch.linalg.vector_norm(parameter.float(), 2, dim=other_dims(parameter, dim))

    return join_slots(model, graph, norm)
