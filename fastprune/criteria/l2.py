"""Square root of Σw² of a channel's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastprune.criteria._scores import Scores, join_slots, registry, summed
from fastprune.graph import ChannelGraph

__all__ = ["l2"]


@registry.register("l2")
def l2(model: nn.Module, graph: ChannelGraph) -> Scores:
    """√Σw² of each channel's weights, mean over its slots (out and in), divided by the group's
    mean.
    """

    def square(parameter: Tensor, name: str, out: Tensor) -> Tensor:
        return torch.square(parameter, out=out)

    return join_slots(model, graph, summed(square, torch.sqrt))
