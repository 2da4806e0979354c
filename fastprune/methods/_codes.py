"""Which codes go with a network and a budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import BudgetError, PlanError
from fastprune.graph import ChannelGraph
from fastprune.graph.units import Units, units_by_group, units_by_stage
from fastprune.models import Network
from fastprune.records import Budget, amount
from fastprune.search import Space

__all__ = [
    "METRICS",
    "SCALE",
    "check_code",
    "reach_of",
    "space_of",
    "units_of",
    "within",
]

Limits = Mapping[str, float] | None

# Columns of a cost model's rows, the last in bytes.
METRICS, SCALE = ("macs", "params", "channels", "size_mb"), (1, 1, 1, 1e6)


def units_of(choice: str, graph: ChannelGraph, network: Network | None) -> Units:
    """What the numbers of a code govern.

    Args:
        choice: ``auto``, ``family``, ``group`` or ``stage``, as in `AbcOptions`.
        graph: the network's.
        network: it, whose family may have units of its own.

    Raises:
        PlanError: the network has no table of its own and that was asked for.
    """
    table = None if network is None else network.units
    if choice == "stage":
        return units_by_stage(graph)
    if choice == "family" and table is None:
        raise PlanError("method.units: the network has no table of its own; expected group")
    if choice == "group" or table is None:
        return units_by_group(graph)
    return table(graph)


def check_code(code: tuple[int, ...], graph: ChannelGraph, budget: Limits, units: Units) -> None:
    """Refuses a given code that is of another network, prunes nothing or is over the budget."""
    try:
        widths = units.widths(graph, code)
    except PlanError as error:
        raise PlanError(f"method.{error}") from None
    vector = graph.width_vector(widths).astype(np.int64)
    if (vector == graph.width_vector()).all():
        raise PlanError("method.code: keeps every channel; nothing would be pruned")
    if not within(graph, budget, vector[None])[0]:
        cost = graph.cost(widths).to_dict()
        reached = ", ".join(f"{name} {cost[name]:,}" for name in budget or {})
        raise BudgetError(f"prune.budget: the network of method.code has {reached}; over budget")


def within(graph: ChannelGraph, budget: Limits, widths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which candidates ``[K]`` of widths ``[K, groups]`` are within the budget."""
    costs = graph.cost_model.raw(widths.astype(np.float64)) / SCALE
    stays = np.ones(len(widths), bool)
    full = graph.cost().to_dict()
    for limit in Budget.parse(budget).limits if budget else ():
        column = METRICS.index(limit.metric)
        stays &= costs[:, column] <= limit.absolute(full[limit.metric])
    return stays


def space_of(highest: int, graph: ChannelGraph, budget: Limits, units: Units) -> Space:
    """The codes that may be asked about.

    Args:
        highest: number of a code.
        graph: the network's.
        budget: as in `PruneOptions`.
        units: what the numbers govern.

    Raises:
        FastpruneError: there are none, or none within the budget.
    """
    size, whole = len(units.names), graph.width_vector().astype(np.int64)
    if not size:
        raise PlanError(
            "method.units: there are none; no channel group that they govern can be pruned, or "
            "prune.keep keeps them all"
        )

    def feasible(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        widths = units.width_matrix(graph, codes)
        # Keeping everything is no candidate either: it would be the best of many a search.
        return within(graph, budget, widths) & (widths < whole).any(1)

    try:
        return Space((1,) * size, (highest,) * size, feasible, fill=bool(budget))
    except BudgetError:
        asked = ", ".join(f"{metric} {limit:g}" for metric, limit in (budget or {}).items())
        raise BudgetError(
            f"prune.budget: no code can meet it; got {asked}, and codes from 1 to {highest} have "
            f"{reach_of(highest, graph, units)}"
        ) from None


def reach_of(highest: int, graph: ChannelGraph, units: Units) -> str:
    """What codes from 1 to ``highest`` bring each metric to, in one line."""
    ends = np.array([[1], [highest]], np.int64).repeat(len(units), axis=1)
    widths = units.width_matrix(graph, ends).astype(np.float64)
    low, high = graph.cost_model.raw(widths) / SCALE
    rows = zip(METRICS, low, high, strict=True)
    return ", ".join(f"{metric} {amount(a)} to {amount(b)}" for metric, a, b in rows)
