"""What a network does with channels: trace, groups, plan, surgery, cost, budget."""

from fastprune.graph.budget import solve
from fastprune.graph.channel_graph import ChannelGraph, ChannelGroup, Slot, Unprunable
from fastprune.graph.genes import (
    Encoding,
    GeneTable,
    block_encodings,
    gene_scales,
    gene_table,
)
from fastprune.graph.groups import trace
from fastprune.graph.plan import PruningPlan
from fastprune.graph.surgery import apply_plan, mask_plan
from fastprune.graph.units import Units, parse_code, units_by_group, units_by_name, units_by_stage

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Encoding",
    "GeneTable",
    "PruningPlan",
    "Slot",
    "Units",
    "Unprunable",
    "apply_plan",
    "block_encodings",
    "gene_scales",
    "gene_table",
    "mask_plan",
    "parse_code",
    "solve",
    "trace",
    "units_by_group",
    "units_by_name",
    "units_by_stage",
]
