"""Drop channels that are mostly zero behind their ReLU.

Hu et al., *Network Trimming*, 2016.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fastprune.errors import PlanError, nearest
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods import MethodContext, MethodResult, PruneOptions, registry
from fastprune.methods._solving import plan_of
from fastprune.methods._zeros import FocusedOptions, counted, facts, recipe_of
from fastprune.options import expecting

__all__ = ["ApozOptions", "apoz", "plan_by_threshold"]

Fraction = Annotated[float, Field(ge=0, lt=1)]


class ApozOptions(FocusedOptions):
    """Options of pruning by APoZ alone.

    Attributes:
        threshold: channels with a larger APoZ go: one number for all groups, or numbers by
            patterns of group names, of which the last that fits counts; other groups stay whole.
            None: as many go as ``prune.budget`` and ``prune.ratios`` say, ranked by APoZ.
    """

    name: Literal["apoz"] = "apoz"
    threshold: Annotated[
        Fraction | dict[str, Fraction] | None,
        expecting("a fraction of at least 0 and below 1, or such fractions by group"),
    ] = None

    def problems(self, prune: PruneOptions) -> list[str]:
        if self.threshold is None:
            if prune.budget is None and not prune.ratios:
                return [
                    "method.threshold: expected an APoZ, such as 0.9, or prune.budget or "
                    "prune.ratios"
                ]
            return []
        usual = PruneOptions()
        return [
            f"prune.{name}: has no part in method.threshold; give the one or the other"
            for name in ("budget", "ranking", "ratios")
            if getattr(prune, name) != getattr(usual, name)
        ]


@registry.register("apoz", options=ApozOptions)
def apoz(context: MethodContext, options: ApozOptions) -> MethodResult:
    """Drop the channels with the highest APoZ: above a threshold, or until a budget is met.

    Raises:
        FastpruneError: the network has no ReLU, a class has no images, nothing is above the
            threshold, or a budget cannot be met.
    """
    counts = counted(context, options)
    fractions, prune = counts.apoz(context.graph), context.prune
    if options.threshold is None:
        scores = {name: 1 - fraction for name, fraction in fractions.items()}
        plan, timed = plan_of(context, context.model, scores, prune)
    else:
        timed = {}
        plan = plan_by_threshold(
            context.graph,
            fractions,
            options.threshold,
            round_to=prune.multiple,
            min_channels=prune.min_channels,
        )
    notes = {**facts(context, options, counts), **timed}
    return MethodResult(plan, context.model, finetune=recipe_of(context, options), notes=notes)


def plan_by_threshold(
    graph: ChannelGraph,
    apoz: Mapping[str, Tensor],
    threshold: float | Mapping[str, float],
    *,
    round_to: int = 1,
    min_channels: int | float = 0,
) -> PruningPlan:
    """The plan that drops every channel whose APoZ is larger than a threshold.

    Args:
        graph: the network's channel graph.
        apoz: group name -> ``[channels]``; groups without stay whole.
        threshold: for all groups, or by patterns of their names, of which the last counts.
        round_to: as many more stay, those with the lowest APoZ, as make a multiple of this.
        min_channels: or as make this many; below 1 a fraction of the group.

    Raises:
        PlanError: a pattern matches no group with APoZ, or nothing would be dropped.
    """
    limits = {"*": threshold} if isinstance(threshold, (int, float)) else dict(threshold)
    for pattern in limits:
        if not fnmatch.filter(apoz, pattern):
            raise PlanError(
                f"threshold {pattern!r}: matches no channel group with a "
                f"ReLU{nearest(pattern, apoz)}"
            )
    keep: dict[str, tuple[int, ...]] = {}
    for group in graph.groups:
        width, size = group.channels, group.channels
        order = torch.arange(size)
        for pattern, limit in limits.items():
            if group.name in apoz and fnmatch.fnmatchcase(group.name, pattern):
                # In float64, where equal counts are equal fractions.
                found = apoz[group.name].double()
                least = math.ceil(size * min_channels) if min_channels < 1 else int(min_channels)
                width = max(int((found <= limit).sum()), least, 1)
                width = min(-(-width // round_to) * round_to, size)
                order = torch.argsort(found, stable=True)
        keep[group.name] = tuple(sorted(order[:width].tolist()))
    plan = PruningPlan(keep, graph.widths())
    if plan.widths() == graph.widths():
        highest = max(float(fraction.max()) for fraction in apoz.values())
        raise PlanError(
            f"threshold: nothing would be dropped at {threshold}; the highest APoZ is "
            f"{highest:.4f}, and prune.min_channels and prune.round_to hold channels back"
        )
    return plan
