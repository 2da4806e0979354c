"""Scores and the common options to a plan."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastprune.graph import PruningPlan, apply_plan, solve
from fastprune.methods import MethodContext, PruneOptions
from fastprune.pruning import measure_latency

__all__ = ["plan_of"]


def plan_of(
    context: MethodContext,
    model: nn.Module,
    scores: Mapping[str, Tensor],
    prune: PruneOptions,
) -> PruningPlan:
    """The plan that keeps the best channels of a network.

    Args:
        context: of the method.
        model: the network that will be pruned, for its latency.
        scores: group name -> ``[channels]``, higher stays longer.
        prune: how small, and where not.

    Raises:
        FastpruneError: as `fastprune.graph.solve`.
    """

    def measure(plan: PruningPlan) -> float:
        small = apply_plan(model, context.graph, plan, allow_unchanged=True)
        return measure_latency(small, [context.example])

    return solve(
        context.graph,
        scores,
        prune.budget,
        round_to=prune.round_to,
        min_channels=prune.min_channels,
        ranking=prune.ranking,
        ratios=prune.ratios,
        measure=measure,
    )
