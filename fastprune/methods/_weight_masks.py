"""Masks over single weights of convolutions: what is dropped by magnitude, and which whole
channels are then of no use.

Masks are bool tensors of the weights' shapes by parameter name, True for what stays, and always
of the **unpruned** network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastprune.errors import DivergenceError, GraphError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods._filters import channel_sums, convolutions, filters_of

__all__ = [
    "Masks",
    "channels_alive",
    "drop_smallest",
    "live_weights",
    "prunable_weights",
    "prune_weights",
    "remaining_after",
]

Masks = dict[str, Tensor]
"""Parameter name -> bool tensor of its shape: True for weights that stay."""

# Sides of a layer's weight that channels are made on.
_MADE = ("out", "group")


def prunable_weights(graph: ChannelGraph, *, first: bool = False) -> tuple[str, ...]:
    """The weights of all convolutions that evaluation runs, in the order they run, each once.

    Weights that are computed in the forward pass (weight norm) are no parameters and not among
    them.

    Args:
        first: with the convolution that runs first, which by default stays whole.

    Raises:
        GraphError: there is none.
    """
    names: dict[str, None] = {}
    spared = None
    for op in convolutions(graph.program):
        weight = op.inputs[1]
        if spared is None:
            spared = "" if first else weight.name
        if weight.source == "parameter" and weight.name != spared:
            names[weight.name] = None
    if not names:
        but = "" if first else " but the first to run"
        raise GraphError(f"the network has no convolution{but} whose weights could be pruned")
    return tuple(names)


def remaining_after(total: int, rates: Sequence[float | Fraction]) -> int:
    """``int(total · Π(1 − rate))`` of the exact product: 0.3 is 3/10, not its nearest float.

    Args:
        total: weights at first.
        rates: part of the remaining weights that each round drops, from 0 to 1.
    """
    left = Fraction(total)
    for rate in rates:
        exact = Fraction(str(rate))
        if not 0 <= exact <= 1:
            raise ValueError(f"rates: expected numbers from 0 to 1, got {rate}")
        left *= 1 - exact
    return int(left)


def drop_smallest(
    weights: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    target: int | Mapping[str, int],
    *,
    ranking: Literal["global", "layer"] = "global",
) -> Masks:
    """Masks of exactly the ``target`` live weights with the largest magnitudes.

    Of equal magnitudes those stay whose parameter comes first by name, and in it by index.

    Args:
        weights: tensors by name, on any devices.
        live: bool, of the same shapes and devices: the weights that are still there.
        target: how many stay; for the ranking ``layer``, of each weight.
        ranking: all weights together, or each by itself.

    Raises:
        ValueError: a target is negative or more than there are, or not of the ranking's kind.
        DivergenceError: a weight is not a finite number.
    """
    for name, weight in weights.items():
        if not weight.isfinite().all():
            bad = int((~weight.isfinite()).sum())
            raise DivergenceError(
                f"{name}: {bad} of {weight.numel()} weights are not finite numbers, so they "
                "cannot be ranked; lower the learning rate"
            )
    names = sorted(weights)
    if ranking == "global":
        if not isinstance(target, int):
            raise ValueError("target: expected one number for the ranking 'global', got several")
        return _largest(weights, live, names, target)
    if isinstance(target, int):
        raise ValueError("target: expected a number a weight for the ranking 'layer', got one")
    return {name: _largest(weights, live, [name], target[name])[name] for name in names}


def _largest(
    weights: Mapping[str, Tensor], live: Mapping[str, Tensor], names: Sequence[str], target: int
) -> Masks:
    # On the CPU: CUDA has no selection of the k-th value that is deterministic.
    magnitudes = torch.cat([weights[name].detach()[live[name]].abs().cpu() for name in names])
    count = len(magnitudes)
    if not 0 <= target <= count:
        raise ValueError(f"target: expected a number from 0 to the {count} live, got {target}")
    if target in (0, count):
        stays = torch.full_like(magnitudes, bool(target), dtype=torch.bool)
    else:
        # Selection instead of sorting: the same weights in a tenth of the time.
        least = magnitudes.kthvalue(count - target + 1).values
        stays = magnitudes > least
        ties = (magnitudes == least).nonzero().flatten()
        stays[ties[: target - int(stays.sum())]] = True
    parts = torch.split(stays, [int(live[name].sum()) for name in names])
    masks = {}
    for name, part in zip(names, parts, strict=True):
        masks[name] = live[name].clone()
        masks[name][live[name]] = part.to(live[name].device)
    return masks


def live_weights(plan: PruningPlan, graph: ChannelGraph, names: Iterable[str]) -> Masks:
    """Masks, on the CPU, of the weights that neither write nor read a channel that ``plan``
    drops.
    """
    stays = graph.kept(plan)
    masks = {name: torch.ones(graph.tensors[name].shape, dtype=torch.bool) for name in names}
    for slot in graph.slots:
        held = [name for name in slot.parameters if name in masks]
        kept = stays[slot.channels]
        if not held or kept.all():
            continue
        for name in held:
            shape = [1] * masks[name].ndim
            shape[slot.dim] = -1
            masks[name] &= torch.from_numpy(kept).view(shape)
    return masks


def written_by(plan: PruningPlan, graph: ChannelGraph) -> Masks:
    """Masks, on the CPU, of the parameters that make the channels which ``plan`` drops, where
    there are any: filters, biases, and scales and shifts of norm layers.
    """
    stays = graph.kept(plan)
    masks: Masks = {}
    for slot in graph.slots:
        kept = stays[slot.channels]
        if kept.all() or slot.role not in (*_MADE, "bias", "scale", "norm"):
            continue
        for name in slot.parameters:
            tensor = graph.tensors[name]
            if tensor.source == "parameter":
                shape = [1] * len(tensor.shape)
                shape[slot.dim] = -1
                mask = masks.setdefault(name, torch.zeros(tensor.shape, dtype=torch.bool))
                mask |= torch.from_numpy(~kept).view(shape)
    return masks


def channels_alive(
    masks: Mapping[str, Tensor],
    graph: ChannelGraph,
    *,
    before: PruningPlan | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> PruningPlan:
    """The plan that drops channels of which nothing is left.

    A channel goes where every layer that writes to it is a convolution in ``masks`` whose filter
    for it has no weight left. Groups that no such convolution writes to, and selected ones, keep
    what they have. A group that would be empty keeps the channel whose filters had the largest sum
    of magnitudes, or the first of equals.

    Args:
        masks: of the prunable weights.
        before: a plan so far; what it drops stays dropped.
        weights: values by name as they were before the last were dropped, zero for those that were
            gone already; without them a group that would be empty keeps its first channel.
    """
    filters = filters_of(graph, masks)
    left = np.zeros(graph.total + 1)
    written = np.zeros(graph.total + 1, bool)
    for name, each in filters.items():
        left += channel_sums(graph, each, each.sums(masks[name]))
        written[each.channels] = True
    for slot in graph.slots:
        if slot.role in _MADE and not all(name in masks for name in slot.parameters):
            left[slot.channels] = np.inf
    stays = np.ones(graph.total + 1, bool) if before is None else graph.kept(before)
    sums = None
    for group in graph.groups:
        part = slice(group.start, group.start + group.channels)
        if group.kind == "selected" or not written[part].any():
            continue
        alive = stays[part] & (left[part] > 0)
        if not alive.any():
            if sums is None:
                sums = np.zeros(graph.total + 1)
                for name, weight in (weights or {}).items():
                    values = filters[name].sums(weight.detach().abs())
                    sums += channel_sums(graph, filters[name], values)
            alive[np.where(stays[part], sums[part], -1).argmax()] = True
        stays[part] = alive
    return graph.plan_from_kept(stays)


def prune_weights(
    weights: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    target: int | Mapping[str, int],
    graph: ChannelGraph,
    *,
    ranking: Literal["global", "layer"] = "global",
    before: PruningPlan | None = None,
) -> tuple[Masks, PruningPlan]:
    """Keeps exactly ``target`` live weights, none of which reads or writes a channel that is gone.

    A weight that reads a channel without a filter is of no use, so it goes before any other: the
    live weights are ranked, channels of which nothing is left are dropped, what reads them is no
    longer live, and so on until no channel goes. Where fewer than ``target`` are live in the end,
    all of them stay.

    Args:
        weights, live, target, ranking: as in :func:`drop_smallest`; ``weights`` are all prunable
            ones.
        graph: the unpruned network's.
        before: the plan of the state before; what it drops stays dropped.

    Returns:
        Masks, and the plan of the channels that stay (:func:`channels_alive`).
    """
    plan = graph.full_plan() if before is None else graph.plan_from_kept(graph.kept(before))
    live = _both(live, live_weights(plan, graph, weights))
    while True:
        counts = {name: int(live[name].sum()) for name in weights}
        wanted: int | dict[str, int]
        if isinstance(target, int):
            wanted = min(target, sum(counts.values()))
        else:
            wanted = {name: min(target[name], counts[name]) for name in weights}
        masks = drop_smallest(weights, live, wanted, ranking=ranking)
        values = {name: weights[name].detach() * live[name] for name in weights}
        after = channels_alive(masks, graph, before=plan, weights=values)
        if after == plan:
            return masks, plan
        plan = after
        live = _both(live, live_weights(plan, graph, weights))


def _both(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Masks:
    return {name: mask & other[name].to(mask.device) for name, mask in one.items()}
