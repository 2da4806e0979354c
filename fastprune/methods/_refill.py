"""From masks over single weights to whole channels: as many as the masks are worth, the best."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastprune.errors import TrainingError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods._filters import Filters, channel_sums, filters_of
from fastprune.methods._weight_masks import live_weights

__all__ = ["refill"]


def refill(
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    graph: ChannelGraph,
    plan: PruningPlan | None = None,
    *,
    fillback_rate: float = 0.0,
) -> PruningPlan:
    """The plan that keeps as many whole channels as the masks are worth dense ones.

    Chen et al., *Coarsening the Granularity*, ICML 2022. A coupled group of C live channels whose
    filters have E live weights, m of which the masks keep, is worth n = C·m/E channels and keeps
    ``int(n + (C − n)·fillback_rate)`` of them, at least one: those with the highest scores, the
    first of equals. The weights that stay are then ``live_weights`` of the plan: all of them.

    Filters of all convolutions that write to a group count together, since a channel goes in all
    of them or in none. Their scores are added up; where there are several, each convolution's are
    divided by their mean magnitude over the group first, for otherwise the one with the largest
    activations or most weights would decide alone. Groups that none of them writes to stay as they
    are.

    Args:
        masks: of the prunable weights.
        scores: ``[filters]`` of each, as ``filter_scores`` gives them.
        graph: the unpruned network's.
        plan: the channels so far; all of them if None.
        fillback_rate: part of the channels that would go that stay all the same, from 0 to 1.

    Raises:
        ValueError: ``fillback_rate`` is out of range, or scores are of other sizes.
        TrainingError: a score is not a finite number.
    """
    rate = Fraction(str(fillback_rate))
    if not 0 <= rate <= 1:
        raise ValueError(f"fillback_rate: expected a number from 0 to 1, got {fillback_rate}")
    filters = filters_of(graph, masks)
    for name, each in filters.items():
        _check(name, each, scores)
    start = graph.full_plan() if plan is None else plan
    stays = graph.kept(start)
    live = live_weights(start, graph, masks)
    sums = {n: f.sums(masks[n].cpu() & live[n]) for n, f in filters.items()}
    kept = [channel_sums(graph, filters[n], sums[n]) for n in filters]
    dense = [channel_sums(graph, filters[n], filters[n].sums(live[n])) for n in filters]
    values = [channel_sums(graph, filters[n], scores[n]) for n in filters]
    for group in graph.groups:
        here = group.start + np.flatnonzero(stays[group.start : group.start + group.channels])
        # Every channel of a group is in the same slots, so one tells what writes to all of them.
        writers = [i for i, f in enumerate(filters.values()) if here[0] in f.channels]
        if not writers or group.kind == "selected":
            continue
        # Sums of ones in float64 are exact.
        left = sum(int(kept[i][here].sum()) for i in writers)
        full = sum(int(dense[i][here].sum()) for i in writers)
        worth = Fraction(len(here) * left, full)
        width = max(int(worth + (len(here) - worth) * rate), 1)
        order = np.argsort(-_joined([values[i][here] for i in writers]), kind="stable")
        stays[here] = False
        stays[here[order[:width]]] = True
    return graph.plan_from_kept(stays)


def _joined(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One score a channel from those of several convolutions."""
    if len(values) == 1:
        return values[0]
    # Of the magnitudes, for estimates of curvature may be negative.
    means = [np.abs(each).mean() for each in values]
    total: NDArray[np.float64] = np.zeros_like(values[0])
    for each, mean in zip(values, means, strict=True):
        if mean > 0:
            total += each / mean
    return total


def _check(name: str, filters: Filters, scores: Mapping[str, Tensor]) -> None:
    count = len(filters.channels)
    found = scores.get(name)
    if found is None or found.shape != (count,):
        got = "none" if found is None else list(found.shape)
        raise ValueError(f"scores[{name!r}]: expected shape [{count}], got {got}")
    if not found.isfinite().all():
        raise TrainingError(
            f"scores[{name!r}]: {int((~found.isfinite()).sum())} of {count} are not finite numbers"
        )
