"""What a state of a lottery ticket trains, and what a round makes of the trained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods._lottery_options import LotteryOptions
from fastprune.methods._refill import refill
from fastprune.methods._weight_masks import (
    Masks,
    drop_smallest,
    live_weights,
    prunable_weights,
    prune_weights,
    written_by,
)

__all__ = ["FilterScores", "Structure", "Ticket", "first_ticket", "next_ticket"]

FilterScores = Callable[[Masks], Mapping[str, Tensor]]
"""Scores of the filters of every prunable convolution, given the weights that a round leaves."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What stays of the unpruned network, in its coordinates.

    Attributes:
        masks: of the prunable weights, true where one stays.
        plan: of the channels.
    """

    masks: Masks
    plan: PruningPlan

    @property
    def remaining(self) -> int:
        """Prunable weights that stay."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain data."""
        return {"masks": dict(self.masks), "plan": self.plan.to_json()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Structure:
        """From what `state_dict` gave."""
        return cls(state["masks"], PruningPlan.from_json(state["plan"]))


@dataclass(frozen=True, slots=True)
class Ticket:
    """A state: what is trained, and what is left of it at the end.

    Attributes:
        trained: what the state trains.
        left: what stays of it after its training; the same unless weights are penalised.
        penalised: masks of the prunable weights that the penalty shrinks, and that go at the end;
            empty where there are none.
        beside: masks of what else makes the channels that go. Where batch norm follows, a filter
            that shrinks gives the same channel until its scale and shift shrink too.
    """

    trained: Structure
    left: Structure
    penalised: Masks
    beside: Masks

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain data."""
        return {
            "trained": self.trained.state_dict(),
            "left": self.left.state_dict(),
            "penalised": dict(self.penalised),
            "beside": dict(self.beside),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Ticket:
        """From what `state_dict` gave."""
        trained, left = Structure.of(state["trained"]), Structure.of(state["left"])
        return cls(trained, left, state["penalised"], state["beside"])


def first_ticket(graph: ChannelGraph, options: LotteryOptions) -> Ticket:
    """The whole network."""
    names = prunable_weights(graph, first=options.first_conv)
    plan = graph.full_plan()
    whole = Structure(live_weights(plan, graph, names), plan)
    return Ticket(whole, whole, {}, {})


def next_ticket(
    before: Structure,
    weights: Mapping[str, Tensor],
    number: int,
    graph: ChannelGraph,
    options: LotteryOptions,
    scores: FilterScores,
) -> Ticket:
    """What round ``number``, from 1 on, makes of a trained network.

    Args:
        before: what the network was when its training had ended.
        weights: trained, in the unpruned network's coordinates; zero where nothing stayed.
        number: of the round.
        graph: of the unpruned network.
        options: the method's.
        scores: asked for where whole filters are chosen.
    """
    after = _after(before, weights, number, graph, options, scores)
    if not options.penalises:
        return Ticket(after, after, {}, {})
    earlier, written = written_by(before.plan, graph), written_by(after.plan, graph)
    makes = {n: mask & ~earlier[n] if n in earlier else mask for n, mask in written.items()}
    gone = {name: mask & ~after.masks[name] for name, mask in before.masks.items()}
    if options.structured:
        # Filters alone: what reads a channel that goes is of no more use without it.
        gone = {name: mask & makes[name] for name, mask in gone.items() if name in makes}
    beside = {name: mask for name, mask in makes.items() if name not in before.masks}
    return Ticket(before, after, gone, beside)


def _after(
    before: Structure,
    weights: Mapping[str, Tensor],
    number: int,
    graph: ChannelGraph,
    options: LotteryOptions,
    scores: FilterScores,
) -> Structure:
    """What a round leaves."""
    names = tuple(before.masks)
    prunable = {name: weights[name] for name in names}
    if not options.structured:
        sizes = {name: mask.numel() for name, mask in before.masks.items()}
        masks, plan = prune_weights(
            prunable,
            before.masks,
            options.targets(sizes, range(1, number + 1)),
            graph,
            ranking=options.ranking,
            before=before.plan,
        )
        return Structure(masks, plan)
    sizes = {name: int(mask.sum()) for name, mask in before.masks.items()}
    target = options.targets(sizes, [number])
    masks = drop_smallest(prunable, before.masks, target, ranking=options.ranking)
    fillback = options.fillback_rate
    plan = refill(masks, scores(masks), graph, before.plan, fillback_rate=fillback)
    return Structure(live_weights(plan, graph, names), plan)
