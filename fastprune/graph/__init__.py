"""What a network does with channels: trace, groups, plan, surgery, cost, budget."""

from fastprune.graph.budget import solve
from fastprune.graph.channel_graph import ChannelGraph, ChannelGroup, Slot, Unprunable
from fastprune.graph.groups import trace
from fastprune.graph.plan import PruningPlan
from fastprune.graph.surgery import apply_plan, mask_plan

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "PruningPlan",
    "Slot",
    "Unprunable",
    "apply_plan",
    "mask_plan",
    "solve",
    "trace",
]
