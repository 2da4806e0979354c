"""Model to pruned model in one call, without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastprune import criteria
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, trace
from fastprune.graph.budget import MIN_CHANNELS, Ranking
from fastprune.graph.trace import Example
from fastprune.latency import DeviceClock, LatencyOptions, alignment_of, plan_within
from fastprune.records import Budget, Cost
from fastprune.training.progress import SilentProgress

__all__ = ["Pruned", "prune"]


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

    def __repr__(self) -> str:
        return f"Pruned({type(self.model).__name__}: {self.before} to {self.after})"


def prune(
    model: nn.Module,
    example: Example,
    *,
    criterion: str = "l1",
    budget: Budget | Mapping[str, float] | None = None,
    round_to: int | Literal["auto"] = 1,
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
        budget, round_to, min_channels, ranking, ratios: as in :func:`fastprune.solve`. Latency is
            measured here, with as many images as the example has and torch's threads; ``round_to``
            may be ``auto``: what this device likes.
        keep: name patterns of layers whose channels stay.
        batches: (images, labels) for criteria that look at data.
        generator: source of randomness for criteria that draw.

    Raises:
        FastpruneError: what cannot be done, in one line.
    """
    graph = trace(model, example, keep=keep)
    scores = criteria.score(criterion, model, graph, batches=batches, generator=generator)

    first = example if isinstance(example, Tensor) else example[0]
    images = LatencyOptions(batch_size=len(first) if first.ndim else 1)
    clock = DeviceClock(images, next((p.device for p in model.parameters()), torch.device("cpu")))
    multiple = round_to
    if multiple == "auto":
        multiple = alignment_of(graph, clock, SilentProgress()).round_to
    plan, _ = plan_within(
        model, graph, scores, budget, clock=clock, round_to=multiple, min_channels=min_channels,
        ranking=ranking, ratios=ratios,
    )  # fmt: skip
    small = apply_plan(model, graph, plan)
    return Pruned(small, plan, graph, graph.cost(), graph.cost(plan))
