"""Model to pruned model in one call, without training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastprune import criteria
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, solve, trace
from fastprune.graph.budget import MIN_CHANNELS, Ranking
from fastprune.graph.trace import Example
from fastprune.records import Budget, Cost

__all__ = ["Pruned", "measure_latency", "prune"]


class Pruned(NamedTuple):
    """What :func:`prune` gives.

    Attributes:
        model: the smaller network.
        plan: what was kept.
        graph: channel graph of the unpruned network.
        before, after: costs.
    """

    model: nn.Module
    plan: PruningPlan
    graph: ChannelGraph
    before: Cost
    after: Cost


def prune(
    model: nn.Module,
    example: Example,
    *,
    criterion: str = "l1",
    budget: Budget | Mapping[str, float] | None = None,
    round_to: int = 1,
    min_channels: int | float = MIN_CHANNELS,
    ranking: Ranking = "global",
    ratios: Mapping[str, float] | None = None,
    keep: Sequence[str] = (),
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    generator: torch.Generator | None = None,
) -> Pruned:
    """Traces, scores, solves the budget and prunes; ``model`` is left as it was. No training.

    Args:
        model: the trained network.
        example: an input, or a tuple of positional arguments.
        criterion: name of a registered criterion.
        budget, round_to, min_channels, ranking, ratios: as in :func:`fastprune.solve`.
        keep: name patterns of layers whose channels stay.
        batches: (images, labels) for criteria that look at data.
        generator: source of randomness for criteria that draw.

    Raises:
        FastpruneError: what cannot be done, in one line.
    """
    graph = trace(model, example, keep=keep)
    scores = criteria.score(criterion, model, graph, batches=batches, generator=generator)

    def measure(plan: PruningPlan) -> float:
        return measure_latency(
            apply_plan(model, graph, plan, allow_unchanged=True), graph.example()
        )

    plan = solve(
        graph, scores, budget, round_to=round_to, min_channels=min_channels, ranking=ranking,
        ratios=ratios,
        measure=measure,
    )  # fmt: skip
    small = apply_plan(model, graph, plan)
    return Pruned(small, plan, graph, graph.cost(), graph.cost(plan))


def measure_latency(
    model: nn.Module, inputs: Sequence[Tensor], *, runs: int = 11, warm_up: int = 3
) -> float:
    """Median milliseconds of one forward pass, in evaluation mode, on the inputs' device."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    inputs = [torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x) for x in inputs]
    cuda = any(x.is_cuda for x in inputs)
    times = []
    try:
        with torch.inference_mode():
            for run in range(warm_up + runs):
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                model(*inputs)
                if cuda:
                    torch.cuda.synchronize()
                if run >= warm_up:
                    times.append(1e3 * (time.perf_counter() - start))
    finally:
        for module in training:
            module.training = True
    return statistics.median(times)
