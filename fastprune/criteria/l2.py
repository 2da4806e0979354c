"""Square root of Σw² of a channel's weights."""

from __future__ import annotations

from torch import nn

from fastprune.criteria._scores import Scores, join_slots, norms, registry
from fastprune.graph import ChannelGraph

__all__ = ["l2"]


@registry.register("l2")
def l2(model: nn.Module, graph: ChannelGraph) -> Scores:
    """√Σw² of each channel's weights, mean over its slots (out and in), divided by the group's
    mean.
    """

    return join_slots(
        model, graph, norms(model, graph, lambda s: (s.out_square.sqrt(), s.in_square.sqrt()))
    )
