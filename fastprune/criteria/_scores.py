"""What criteria share: per-slot values to one score a channel of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastprune.errors import FastpruneError, GraphError
from fastprune.graph import ChannelGraph, Slot
from fastprune.ops import ChannelScores, channel_scores, channel_scores_of
from fastprune.registry import Registry

__all__ = [
    "WEIGHT_ROLES",
    "Scores",
    "by_group",
    "check_slot",
    "join_slots",
    "norms",
    "registry",
    "score",
    "summed",
]

Scores = dict[str, Tensor]
"""Group name -> float32 scores ``[channels]``."""

registry: Registry[Callable[..., Scores]] = Registry("criteria", "fastprune.criteria")

WEIGHT_ROLES = ("out", "in", "group")


def score(
    name: str,
    model: nn.Module,
    graph: ChannelGraph,
    *,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    generator: torch.Generator | None = None,
) -> Scores:
    """The scores of the criterion called ``name``, given what it needs.

    Args:
        name: a registered criterion.
        model: the network, with its weights.
        graph: its channel graph.
        batches: (images, labels) for criteria that look at data.
        generator: source of randomness for criteria that draw.

    Raises:
        FastpruneError: unknown name, or a criterion that needs batches and got none.
    """
    entry = registry.get(name)
    given: dict[str, Any] = {}
    if entry.extra.get("data"):
        if batches is None:
            raise FastpruneError(
                f"criterion {name!r}: looks at data; expected batches of (images, labels)"
            )
        given["batches"] = batches
    if entry.extra.get("draws"):
        given["generator"] = generator
    return entry.build(model, graph, **given)


def join_slots(
    model: nn.Module,
    graph: ChannelGraph,
    per_position: Callable[[Tensor, int, str], Tensor],
    *,
    roles: tuple[str, ...] = WEIGHT_ROLES,
    normalize: bool = True,
) -> Scores:
    """Scores from values of the single positions of the slots.

    A channel's value in a slot is the sum over its positions there; its score is the **mean over
    all slots** of its group that have one of ``roles`` (out and in sides alike). With
    ``normalize``, scores are then divided by their **mean over the group**, so that layers of
    different scale can be ranked together.

    Args:
        per_position: (parameter, dim, name) -> float values ``[size of dim]``.
        roles: which slots count.

    Returns:
        Scores of the groups that have such a slot.
    """
    parameters = dict(model.named_parameters())
    channels: list[Tensor] = []
    values: list[Tensor] = []
    slots = np.zeros(graph.total + 1, dtype=np.float32)
    with torch.no_grad():
        for slot in graph.slots:
            if slot.role not in roles:
                continue
            counted = False
            for name in slot.parameters:
                parameter = parameters.get(name)
                if parameter is None:
                    continue
                check_slot(parameter, slot, name)
                channels.append(torch.from_numpy(slot.channels))
                values.append(per_position(parameter, slot.dim, name))
                counted = True
            if counted:
                # Exchangeable channels of a group occur in the same slots, so one entry each is
                # enough.
                slots[slot.channels] += 1
    total = torch.zeros(graph.total + 1, dtype=torch.float32)
    if values:
        # Joined before they leave a GPU, which is then waited for once.
        if len({v.device for v in values}) > 1:
            values = [v.cpu() for v in values]
        joined = torch.cat([v.float() for v in values])
        total.index_add_(0, torch.cat(channels), joined.cpu())
    counts = torch.from_numpy(slots)
    return by_group(graph, total / counts.clamp(min=1), counts, normalize=normalize)


def check_slot(parameter: Tensor, slot: Slot, name: str) -> None:
    """Raises GraphError unless a parameter has the channels that a slot of the graph says."""
    found, expected = parameter.shape[slot.dim], len(slot.channels)
    if found != expected:
        raise GraphError(
            f"model: the graph is of another network: {name} has {found} channels in dimension "
            f"{slot.dim}, the graph {expected}"
        )


def by_group(graph: ChannelGraph, values: Tensor, slots: Tensor, *, normalize: bool) -> Scores:
    """Splits values ``[total + 1]`` by group; groups whose channels are in no counted slot are
    left out.
    """
    scores = {}
    for group in graph.groups:
        part = slice(group.start, group.start + group.channels)
        if not slots[part].any():
            continue
        found = values[part]
        if normalize:
            mean = found.mean()
            found = found / mean if mean > 0 else found
        scores[group.name] = found.clone()
    return scores


def norms(
    model: nn.Module,
    graph: ChannelGraph,
    vectors: Callable[[ChannelScores], tuple[Tensor, Tensor]],
) -> Callable[[Tensor, int, str], Tensor]:
    """Values of positions from the sums of |w| or w² of all weights, for :func:`join_slots`.

    All weights are read once, in one call: on ResNet-50 it takes as long as one sum of them.

    Args:
        vectors: picks the out and the in side's values.
    """
    parameters = dict(model.named_parameters())
    names = {n: None for slot in graph.slots if slot.role in WEIGHT_ROLES for n in slot.parameters}
    weights = {n: _floating(parameters[n]) for n in names if n in parameters}
    scores = channel_scores_of(list(weights.values()))
    found = {name: vectors(each) for name, each in zip(weights, scores, strict=True)}

    def values(parameter: Tensor, dim: int, name: str) -> Tensor:
        if dim > 1:
            return vectors(channel_scores(_floating(parameter).movedim(dim, 0)))[0]
        return found[name][dim]

    return values


def _floating(weight: Tensor) -> Tensor:
    return weight if weight.is_floating_point() else weight.float()


def summed(
    elementwise: Callable[[Tensor, str, Tensor], Tensor],
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor, int, str], Tensor]:
    """Values of positions as sums over a weight's other dimensions, for :func:`join_slots`.

    The out and the in side of a weight follow each other, so the elementwise pass over the weight
    is made once for both.

    Args:
        elementwise: (parameter, name, buffer of its shape to write to) -> values of the single
            weights.
        finish: applied to the sums.
    """
    last: list[Any] = [None, None]
    buffer = torch.empty(0)

    def values(parameter: Tensor, dim: int, name: str) -> Tensor:
        nonlocal buffer
        if last[0] != name:
            if buffer.numel() < parameter.numel() or buffer.device != parameter.device:
                buffer = torch.empty(parameter.numel(), device=parameter.device)
            space = buffer[: parameter.numel()].view(parameter.shape)
            last[:] = name, elementwise(parameter.float(), name, space).flatten(1)
        rows: Tensor = last[1]
        sums = rows.sum(1) if dim == 0 else rows.sum(0).view(parameter.shape[1], -1).sum(1)
        return sums if finish is None else finish(sums)

    return values
