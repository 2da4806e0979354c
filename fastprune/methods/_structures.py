"""What searches over structures share, whatever integers they know them by: the common options
that have no meaning for them, the budget, and the space of those within it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import BudgetError, PlanError
from fastprune.graph import ChannelGraph
from fastprune.methods import PruneOptions
from fastprune.records import Budget, Widths, amount
from fastprune.search import Space

__all__ = ["Limits", "check_structure", "common_problems", "reach", "structure_space", "within"]

Limits = Mapping[str, float] | None

# Columns of a cost model's rows, the last in bytes.
_METRICS, _SCALE = ("macs", "params", "channels", "size_mb"), (1, 1, 1, 1e6)


def common_problems(prune: PruneOptions, why: str, word: str) -> list[str]:
    """What of the common options does not go with a search over structures.

    Args:
        prune: the common options.
        why: what to say of one that has no meaning.
        word: what the method calls a structure.
    """
    others = PruneOptions(keep=prune.keep, budget=prune.budget).model_dump()
    found = [
        f"prune.{name}: not a part of {why}"
        for name, value in prune.model_dump().items()
        if value != others[name]
    ]
    if prune.budget and "latency_ms" in prune.budget:
        found.append(
            f"prune.budget.latency_ms: cannot be known of a {word} without building its network; "
            "expected macs, params, channels or size_mb"
        )
    return found


def within(graph: ChannelGraph, budget: Limits, widths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which candidates ``[K]`` of widths ``[K, groups]`` are within the budget."""
    costs = graph.cost_model.raw(widths.astype(np.float64)) / _SCALE
    stays = np.ones(len(widths), bool)
    full = graph.cost().to_dict()
    for limit in Budget.parse(budget).limits if budget else ():
        column = _METRICS.index(limit.metric)
        stays &= costs[:, column] <= limit.absolute(full[limit.metric])
    return stays


def check_structure(graph: ChannelGraph, budget: Limits, widths: Widths, field: str) -> None:
    """Refuses a given structure that prunes nothing or is over the budget.

    Args:
        graph: the network's.
        budget: as in `PruneOptions`.
        widths: the structure.
        field: the option that gives it.
    """
    vector = graph.width_vector(widths).astype(np.int64)
    if (vector == graph.width_vector()).all():
        raise PlanError(f"{field}: keeps every channel; nothing would be pruned")
    if not within(graph, budget, vector[None])[0]:
        cost = graph.cost(widths).to_dict()
        reached = ", ".join(f"{name} {cost[name]:,}" for name in budget or {})
        raise BudgetError(f"prune.budget: the network of {field} has {reached}; over budget")


def structure_space(
    graph: ChannelGraph,
    budget: Limits,
    low: tuple[int, ...],
    high: tuple[int, ...],
    width_matrix: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    *,
    word: str,
    fill: bool = False,
) -> Space:
    """The structures that may be asked about.

    Args:
        graph: the network's.
        budget: as in `PruneOptions`.
        low, high: of each integer.
        width_matrix: integers ``[K, D]`` -> widths ``[K, groups]``.
        word: what the method calls a structure.
        fill: as in `Space`.

    Raises:
        BudgetError: not even the lowest is within the budget.
    """
    whole = graph.width_vector().astype(np.int64)

    def feasible(integers: NDArray[np.int64]) -> NDArray[np.bool_]:
        widths = width_matrix(integers)
        # Keeping everything is no candidate either: it would be the best of many a search.
        return within(graph, budget, widths) & (widths < whole).any(1)

    try:
        return Space(low, high, feasible, fill=fill)
    except BudgetError:
        asked = ", ".join(f"{metric} {limit:g}" for metric, limit in (budget or {}).items())
        reached = reach(graph, width_matrix(np.array([low, high], np.int64)))
        raise BudgetError(
            f"prune.budget: no {word} can meet it; got {asked}, and {word}s have {reached}"
        ) from None


def reach(graph: ChannelGraph, ends: NDArray[np.int64]) -> str:
    """What the widths ``ends [2, groups]`` bring each metric to, in one line."""
    low, high = graph.cost_model.raw(ends.astype(np.float64)) / _SCALE
    rows = zip(_METRICS, low, high, strict=True)
    return ", ".join(f"{metric} {amount(a)} to {amount(b)}" for metric, a, b in rows)
