"""Which channels a smaller network inherits: an order of the channels, and the plan of widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fastprune import criteria
from fastprune.criteria import Scores
from fastprune.errors import FastpruneError, PlanError, nearest
from fastprune.graph import ChannelGraph, PruningPlan

__all__ = ["channel_order", "check_rule", "plan_of", "rules"]

_FIRST = "first"

# What ABCPruner's published command line calls the rules.
_PUBLISHED = {"default": _FIRST, "random_pretrain": "random", "l1_pretrain": "l1"}


def rules() -> list[str]:
    """The rules of inheritance: ``first``, and every criterion by name."""
    return sorted({_FIRST, *criteria.registry.names()})


def check_rule(rule: str) -> None:
    """Raises FastpruneError unless ``rule`` is one of :func:`rules`."""
    if rule in rules():
        return
    hint = nearest(rule, rules())
    if rule in _PUBLISHED:
        hint = f"; ABCPruner's {rule!r} is called {_PUBLISHED[rule]!r} here"
    raise FastpruneError(f"inherit: unknown rule {rule!r}{hint}")


def channel_order(
    rule: str,
    model: nn.Module,
    graph: ChannelGraph,
    *,
    seed: int,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> Scores:
    """Scores by which channels are inherited, the highest first; the same seed, the same scores.

    Args:
        rule: ``first`` for channels in their order, ``random`` for one random order, or any other
            criterion.
        model: the trained network.
        graph: its channel graph.
        seed: of rules that draw.
        batches: (images, labels) for criteria that look at data.

    Returns:
        float32 ``[channels]`` by group. A criterion that says nothing of a group leaves it out,
        and :func:`plan_of` then refuses to narrow it.

    Raises:
        FastpruneError: an unknown rule, or a criterion that needs batches and got none.
    """
    check_rule(rule)
    if rule == _FIRST:
        # float32 counts exactly up to 2^24.
        return {g.name: torch.arange(g.channels, 0, -1).float() for g in graph.groups}
    generator = torch.Generator().manual_seed(seed)
    return criteria.score(rule, model, graph, batches=batches, generator=generator)


def plan_of(
    graph: ChannelGraph, widths: Mapping[str, int], scores: Mapping[str, Tensor]
) -> PruningPlan:
    """The plan that keeps the ``widths[group]`` channels of each group with the highest scores.

    Of equal scores the channel with the lower index stays. Groups without a width stay whole.

    Args:
        graph: the network's channel graph.
        widths: channels to keep, by group.
        scores: ``[channels]`` by group, as :func:`channel_order` gives them.

    Raises:
        PlanError: an unknown group, a width out of range, or a group that is to be narrowed and
            has no scores, or scores that are not finite numbers.
    """
    graph.width_vector(widths)
    keep = {}
    for group in graph.groups:
        width = widths.get(group.name, group.channels)
        if width == group.channels:
            keep[group.name] = tuple(range(width))
        else:
            order = _ranked(scores.get(group.name), group.name, group.channels)
            keep[group.name] = tuple(sorted(order[:width]))
    return PruningPlan(keep, graph.widths())


def _ranked(scores: Tensor | None, name: str, channels: int) -> list[int]:
    """Channels, the highest score first."""
    if scores is None:
        raise PlanError(
            f"scores: group {name!r} is to be narrowed and has no scores under this criterion; "
            "use one that ranks it, such as l1, or name it in prune.keep"
        )
    if scores.shape != (channels,):
        raise PlanError(f"scores[{name!r}]: expected shape [{channels}], got {list(scores.shape)}")
    if not scores.isfinite().all():
        raise PlanError(
            f"scores[{name!r}]: {int((~scores.isfinite()).sum())} scores are not finite numbers"
        )
    order: list[int] = torch.sort(scores, descending=True, stable=True).indices.tolist()
    return order
