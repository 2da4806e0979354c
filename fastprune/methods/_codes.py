"""Which codes go with a network and a budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import PlanError
from fastprune.graph import ChannelGraph
from fastprune.graph.units import Units, units_by_group, units_by_stage
from fastprune.methods._structures import Limits, check_structure, reach, structure_space
from fastprune.models import Network
from fastprune.search import Space

__all__ = ["check_code", "reach_of", "space_of", "units_of"]


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
    check_structure(graph, budget, widths, "method.code")


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
    size = len(units.names)
    if not size:
        raise PlanError(
            "method.units: there are none; no channel group that they govern can be pruned, or "
            "prune.keep keeps them all"
        )

    def width_matrix(codes: NDArray[np.int64]) -> NDArray[np.int64]:
        return units.width_matrix(graph, codes)

    return structure_space(
        graph,
        budget,
        (1,) * size,
        (highest,) * size,
        width_matrix,
        word="code",
        fill=bool(budget),
    )


def reach_of(highest: int, graph: ChannelGraph, units: Units) -> str:
    """What codes from 1 to ``highest`` bring each metric to, in one line."""
    ends = np.array([[1], [highest]], np.int64).repeat(len(units), axis=1)
    return reach(graph, units.width_matrix(graph, ends))
