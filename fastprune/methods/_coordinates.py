"""Between the unpruned network and the one a plan cuts out of it: masks there, states back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastprune.errors import PlanError
from fastprune.graph import ChannelGraph, PruningPlan

__all__ = ["gather_masks", "scatter_state"]

Positions = dict[str, dict[int, Tensor]]


def gather_masks(
    masks: Mapping[str, Tensor], graph: ChannelGraph, plan: PruningPlan
) -> dict[str, Tensor]:
    """Masks of the unpruned network as masks of the one that ``apply_plan`` makes of it.

    Args:
        masks: tensors of the shapes of parameters, by name.
        graph: the unpruned network's.
        plan: what that network was pruned by.

    Returns:
        New tensors, of the pruned network's shapes.
    """
    positions = _positions(graph, plan)
    gathered = {}
    for name, mask in masks.items():
        part = mask.clone()
        for dim, kept in positions.get(name, {}).items():
            part = part.index_select(dim, kept.to(part.device))
        gathered[name] = part
    return gathered


def scatter_state(
    state: Mapping[str, Any], graph: ChannelGraph, plan: PruningPlan, model: nn.Module
) -> dict[str, Any]:
    """The state of the network that ``apply_plan`` made, in the coordinates of the unpruned one.

    Entries of channels that are gone are zero, but in buffers that the forward pass divides or
    indexes by, which keep ``model``'s; so ``model`` with that state computes what the pruned
    network does.

    Args:
        state: the pruned network's ``state_dict``.
        graph: the unpruned network's.
        plan: what it was pruned by.
        model: the unpruned network, whose names and shapes the result has.

    Returns:
        New tensors on the devices of ``state``'s.

    Raises:
        PlanError: the state is not of the network that the plan makes.
    """
    positions = _positions(graph, plan)
    own = {n for s in graph.slots if s.role in ("divisor", "index") for n in s.parameters}
    selected = _narrowed(graph, plan)
    # A tensor may have several names in a state, of which the graph has the first.
    known = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    full: dict[str, Any] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        owner, _, attribute = key.rpartition(".")
        found = f"{owner}.reader.{attribute}" if owner in selected else key
        if found not in state:
            raise PlanError(f"state: holds no {found!r}; expected the state of the pruned network")
        if not isinstance(tensor, Tensor):
            full[key] = state[found]
            continue
        name = known.get(id(tensor), key)
        part = state[found].clone()
        for dim, kept in positions.get(name, {}).items():
            shape = list(part.shape)
            if shape[dim] != len(kept):
                raise PlanError(
                    f"state[{found!r}]: expected {len(kept)} entries in dimension {dim}, got "
                    f"{shape[dim]}; it is of a network that was pruned by another plan"
                )
            shape[dim] = tensor.shape[dim]
            whole = (
                tensor.detach().to(part.device, copy=True)
                if name in own
                else part.new_zeros(shape)
            )
            part = whole.index_copy_(dim, kept.to(part.device), part)
        if part.shape != tensor.shape:
            raise PlanError(
                f"state[{found!r}]: expected shape {list(tensor.shape)}, got {list(part.shape)}"
            )
        full[key] = part
    return full


def _positions(graph: ChannelGraph, plan: PruningPlan) -> Positions:
    """Kept positions by tensor and dimension; dimensions that stay whole are left out."""
    stays = graph.kept(plan)
    positions: Positions = {}
    for slot in graph.slots:
        kept = stays[slot.channels]
        if slot.role in ("select", "selected scale") or kept.all():
            continue
        for name in slot.parameters:
            positions.setdefault(name, {})[slot.dim] = torch.from_numpy(np.flatnonzero(kept))
    return positions


def _narrowed(graph: ChannelGraph, plan: PruningPlan) -> set[str]:
    """Norm layers that ``apply_plan`` puts a channel select behind."""
    stays = graph.kept(plan)
    return {
        slot.parameters[0]
        for slot in graph.slots
        if slot.role == "select" and not stays[slot.channels].all()
    }
