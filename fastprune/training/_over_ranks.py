"""Candidates over ranks: trained ones handed out one by one, those that share steps in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from fastprune.distributed import gathered, taken, world
from fastprune.graph import PruningPlan
from fastprune.training.evaluator import Outcome, Request

__all__ = ["OverRanks", "parts_of"]


class Evaluator(Protocol):
    """Who evaluates candidates on one rank."""

    def outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Outcome]]:
        """The outcome of each request; the next is asked for when there is room for it."""


class OverRanks:
    """Evaluates candidates on all ranks, each by the rank that is free first.

    An outcome is what its rank would have come to alone, so who evaluated it changes nothing but
    its seconds.

    Args:
        evaluator: of this rank.
        cost: of a plan's network, such as its MACs. Those that cost most go first, so that ranks
            end at about the same time.
    """

    def __init__(self, evaluator: Evaluator, cost: Callable[[PruningPlan], float]) -> None:
        self._evaluator, self._cost = evaluator, cost

    def outcomes(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Outcome]]:
        """The outcome of each request, in order, once all are known."""
        if not requests:
            return
        number_of = {id(request): number for number, request in enumerate(requests)}
        costs = [self._cost(request.plan) for request in requests]
        order = sorted(range(len(requests)), key=lambda number: (-costs[number], number))
        mine = (requests[order[place]] for place in taken(len(requests)))
        found = {number_of[id(r)]: outcome for r, outcome in self._evaluator.outcomes(mine)}
        merged = {number: outcome for part in gathered(found) for number, outcome in part.items()}
        for number, request in enumerate(requests):
            yield request, merged[number]


def parts_of(
    plans: Sequence[PruningPlan], cost: Callable[[PruningPlan], float] | None
) -> list[list[int]]:
    """Candidates of each rank, by number: neighbours, which have most steps in common.

    In the order of what they keep, group by group, those that begin alike follow each other. Ranks
    get runs of this order of about the same cost, where what a candidate has in common with the
    one before it counts for little.

    Args:
        plans: of all candidates.
        cost: of a network by itself, such as its MACs; None: all cost the same.
    """
    keys = [tuple(plan.keep.values()) for plan in plans]
    order = sorted(range(len(plans)), key=keys.__getitem__)
    ends, total = [], 0.0
    for place, number in enumerate(order):
        whole = 1.0 if cost is None else cost(plans[number])
        neighbour = keys[order[place - 1]] if place else ()
        total += whole * (1 - _alike(neighbour, keys[number]))
        ends.append(total)
    parts: list[list[int]] = [[] for _ in range(world())]
    before = 0.0
    for end, number in zip(ends, order, strict=True):
        # By its middle, so that no rank gets more than half a candidate too much.
        parts[min(int((before + end) / 2 / total * world()), world() - 1)].append(number)
        before = end
    return parts


def _alike(a: tuple[object, ...], b: tuple[object, ...]) -> float:
    """The share of groups, from the first on, that two candidates keep alike."""
    same = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        same += 1
    return same / max(len(b), 1)
