"""Candidates that a method recalibrates and scores, and does not train."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from fastprune.graph import PruningPlan, apply_plan
from fastprune.methods import MethodContext
from fastprune.training import recalibrate_batch_norm
from fastprune.training.scored import ScoredEvaluator
from fastprune.training.shared import inherited_subnets

__all__ = ["RECALIBRATE_BATCHES", "recalibrated_state", "scorer"]

RECALIBRATE_BATCHES = 10
"""Where ``recalibrate_batches`` is not given."""


def scorer(
    context: MethodContext,
    batches: int | None,
    split: Literal["validation", "test"] = "validation",
    metric: Literal["top1", "top5"] = "top1",
) -> ScoredEvaluator:
    """Scores plans with the weights they inherit of the context's network, in float32.

    Args:
        context: of the method.
        batches: training batches for batch norm statistics; None: `RECALIBRATE_BATCHES`.
        split: images that fitness is measured on.
        metric: the accuracy that counts.
    """
    return ScoredEvaluator(
        partial(inherited_subnets, context.model, context.graph),
        context.example,
        context.splits,
        split=split,
        metric=metric,
        batches=RECALIBRATE_BATCHES if batches is None else batches,
        device=context.device,
        cost=lambda plan: context.graph.cost(plan).macs,
        progress=context.progress,
    )


def recalibrated_state(
    context: MethodContext, plan: PruningPlan, batches: int | None
) -> dict[str, Tensor]:
    """The weights that a plan was scored with, on the CPU."""
    small = apply_plan(context.model, context.graph, plan, allow_unchanged=True)
    count = RECALIBRATE_BATCHES if batches is None else batches
    recalibrate_batch_norm(small, context.splits.train, count, context.device)
    return {name: tensor.cpu() for name, tensor in small.state_dict().items()}
