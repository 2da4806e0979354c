"""Scores and the common options to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastprune.distributed import first
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.latency import DeviceClock, plan_within
from fastprune.methods import MethodContext, PruneOptions

__all__ = ["Solved", "plan_of"]


class Solved(NamedTuple):
    """A plan, and what the report shall say of its latency; nothing where that is no limit."""

    plan: PruningPlan
    notes: dict[str, Any]


def plan_of(
    context: MethodContext,
    model: nn.Module,
    scores: Mapping[str, Tensor],
    prune: PruneOptions,
    *,
    graph: ChannelGraph | None = None,
) -> Solved:
    """The plan that keeps the best channels of a network.

    Args:
        context: of the method.
        model: the network that will be pruned, for its latency.
        scores: group name -> ``[channels]``, higher stays longer.
        prune: how small, and where not.
        graph: of ``model``, where it is not the context's.

    Raises:
        FastpruneError: as `fastprune.graph.solve`.
    """
    # The first rank's: another one might measure another latency.
    found = first(
        lambda: plan_within(
            model,
            graph or context.graph,
            scores,
            prune.budget,
            clock=DeviceClock(context.latency, context.device),
            work=context.directory,
            progress=context.progress,
            round_to=prune.multiple,
            min_channels=prune.min_channels,
            ranking=prune.ranking,
            ratios=prune.ratios,
        )
    )
    return Solved(found.plan, {} if found.facts is None else {"latency": found.facts.to_json()})
