"""Σ|w| of a channel's weights."""

from __future__ import annotations

from torch import nn

from fastprune.criteria._scores import Scores, join_slots, norms, registry
from fastprune.graph import ChannelGraph

__all__ = ["l1"]


@registry.register("l1")
def l1(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Σ|w| of each channel's weights, mean over its slots (out and in), divided by the group's
    mean.

    Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017, joined over all layers that
    share the channel.
    """

    return join_slots(model, graph, norms(model, graph, lambda s: (s.out_abs, s.in_abs)))
