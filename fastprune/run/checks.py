"""What is checked before a run trains, and after it pruned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastprune.config import RunConfig
from fastprune.data import InputPipeline
from fastprune.errors import BudgetError, ConfigError, PlanError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.graph.budget import reachable
from fastprune.methods import PruneOptions
from fastprune.records import Budget, amount
from fastprune.training import impossible

__all__ = ["budget_lines", "check_oracle", "check_reachable", "check_recipes"]

_IMAGES = 8
_LARGEST_ERROR = 1e-6


def check_recipes(
    config: RunConfig, device: torch.device, train: InputPipeline | None = None
) -> None:
    """Refuses recipes that cannot be followed here, before the first of them is.

    Args:
        config: of the run.
        device: where to compute.
        train: the training images; None before they are opened.

    Raises:
        ConfigError: a line for each field.
    """
    own = {f"method.{name}": recipe for name, recipe in config.method.recipes.items()}
    trained = bool(config.model.weights or config.baseline or own)
    problems = [
        f"{field}.{problem}"
        for field, recipe in {
            "baseline": config.baseline,
            **own,
            "finetune": config.finetune,
        }.items()
        if recipe is not None
        for problem in impossible(
            recipe,
            device,
            train=train,
            validated=config.data.validation != 0,
            taught=trained if field == "finetune" else field in own and config.method.taught,
        )
    ]
    if problems:
        raise ConfigError(problems)


def check_reachable(prune: PruneOptions, graph: ChannelGraph) -> str:
    """What each metric can be brought to, in one line.

    Raises:
        BudgetError: the budget is out of reach or met already, so that training for it is in vain.
    """
    table = reachable(
        graph, round_to=prune.multiple, min_channels=prune.min_channels, ratios=prune.ratios
    )
    ranges = {row.metric: row for row in table}
    limits = Budget.parse(prune.budget).limits if prune.budget else ()
    for limit in limits:
        row = ranges.get(limit.metric)
        if row is not None and limit.absolute(row.full) < row.lowest:
            why = "with the floors given"
            raise BudgetError(f"prune.{limit.beyond(row.lowest, row.full, why)}")
    known = [(limit, ranges[limit.metric]) for limit in limits if limit.metric in ranges]
    met = [(limit, row) for limit, row in known if limit.absolute(row.full) >= row.full]
    if met and len(met) == len(limits) and not prune.ratios:
        limit, row = met[0]
        raise BudgetError(
            f"prune.budget.{limit.metric}: {limit.shown(row.full)} is met by the unpruned "
            f"network ({amount(row.full)}); nothing would be pruned"
        )
    return ", ".join(f"{row.metric} {amount(row.lowest)} to {amount(row.full)}" for row in table)


def check_oracle(masked: nn.Module, small: nn.Module, images: torch.Tensor) -> dict[str, Any]:
    """How far the pruned network is from the masked one on real images.

    In float64, where a right network differs by rounding alone, and a wrong one by far more.

    Args:
        masked: may be changed.
        small: left as it is.
        images: a batch ``[N, C, H, W]`` on the networks' device.

    Raises:
        PlanError: it is not the same function.
    """
    images = images[:_IMAGES].double()
    with torch.no_grad():
        expected = masked.double().eval()(images)
        got = copy.deepcopy(small).double().eval()(images)
    error = float((got - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    # Written so that NaN fails too.
    if not error <= _LARGEST_ERROR:
        raise PlanError(
            f"plan: the pruned network differs from the masked one by {error:.2g} of the largest "
            "output"
        )
    return {"images": len(images), "relative_error": float(f"{error:.1e}"), "equal": True}


def budget_lines(
    budget: Mapping[str, float] | None, graph: ChannelGraph, plan: PruningPlan
) -> list[dict[str, Any]]:
    """What was asked for and what was reached, a limit each but latency."""
    full, now = graph.cost().to_dict(), graph.cost(plan).to_dict()
    lines = []
    for limit in Budget.parse(budget).limits if budget else ():
        if limit.metric in full:
            allowed = limit.absolute(full[limit.metric])
            lines.append({"metric": limit.metric, "limit": allowed, "reached": now[limit.metric]})
    return lines
