"""A plan to a network: smaller (``apply_plan``), or of the same shapes with dropped channels at
zero (``mask_plan``).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fastprune.errors import GraphError, PlanError
from fastprune.graph.channel_graph import ChannelGraph
from fastprune.graph.counting import pruned_shape
from fastprune.graph.plan import PruningPlan
from fastprune.graph.program import Op, Program, Value
from fastprune.graph.rules import ARITHMETIC, GROUPING
from fastprune.graph.trace import trace_program
from fastprune.nn import ChannelSelect
from fastprune.ops import GatherPlan, gather_channels

__all__ = ["apply_plan", "mask_plan"]

Indices = dict[int, Tensor]


def apply_plan(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    allow_unchanged: bool = False,
) -> nn.Module:
    """A new network without the channels that ``plan`` drops; ``model`` is left as it was.

    Weights keep dtype, device, memory format and ``requires_grad``; modules keep their mode. The
    result is traced once more and compared with what the plan predicts, so a forward pass with
    sizes of its own is an error here and not a wrong network later.

    Args:
        model: the network the graph was traced from, or one of the same architecture.
        graph: its channel graph.
        plan: what to keep.
        optimizer: an optimizer of ``model``'s parameters. It is moved to the new network's
            parameters, its state (momentum and the like) cut by the same indices.
        allow_unchanged: accept a plan that drops nothing.

    Raises:
        PlanError: the plan is of another network, drops nothing, or the network's code cannot
        follow it.
    """
    stays = graph.kept(plan)
    if stays.all() and not allow_unchanged:
        raise PlanError(
            "plan: drops no channel, so the network would not change; lower the budget or the "
            "ratios"
        )
    cuts, selects = _cuts(graph, stays)
    tensors = _check_tensors(model, graph)
    memo: dict[int, Any] = {}
    cut = _cut([tensors[name] for name in cuts], list(cuts.values()), {})
    for name, new in zip(cuts, cut, strict=True):
        old = tensors[name]
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        memo[id(old)] = new
    small = _copy(model, memo)
    whole = {name for slot in graph.slots if slot.role == "group" for name in slot.parameters}
    _update_sizes(model, small, tensors, cuts, whole)
    for name, kept in selects.items():
        _insert_select(small, name, kept)
    _verify(small, graph, stays, bool(selects))
    if optimizer is not None:
        _move_optimizer(optimizer, tensors, small, cuts, selects)
    return small


def mask_plan(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """A copy of ``model``, same shapes, in which the channels that ``plan`` drops are zero and
    stay zero.

    Every parameter entry of a dropped channel is zero, and so is its gradient, whatever trains the
    copy. It computes what :func:`apply_plan`'s network computes: the oracle of all surgery.
    """
    stays = graph.kept(plan)
    _check_tensors(model, graph)
    masked = _copy(model, {})
    tensors: dict[str, Tensor] = {
        **dict(masked.named_buffers()),
        **dict(masked.named_parameters()),
    }
    masks: dict[str, Tensor] = {}
    for slot in graph.slots:
        kept = stays[slot.channels]
        if slot.role in ("index", "select", "selected scale", "divisor") or kept.all():
            continue
        for name in slot.parameters:
            tensor = tensors[name]
            shape = [1] * tensor.ndim
            shape[slot.dim] = -1
            mask = torch.from_numpy(kept).to(tensor.device, tensor.dtype).view(shape)
            masks[name] = masks[name] * mask if name in masks else mask
    for name, mask in masks.items():
        tensor = tensors[name]
        with torch.no_grad():
            tensor.mul_(mask)
        if tensor.requires_grad:
            tensor.register_hook(partial(torch.mul, mask))  # type: ignore[no-untyped-call]
    return masked


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; weights that a hook computed and left behind (the older weight norm) are copied
    without history.
    """
    for module in model.modules():
        for item in vars(module).values():
            if isinstance(item, Tensor) and item.grad_fn is not None:
                memo[id(item)] = item.detach().clone()
            elif type(item) in (OrderedDict, set) and not item:
                # Modules have a dozen for hooks, mostly empty: a third of what deepcopy took.
                memo[id(item)] = type(item)()
    return copy.deepcopy(model, memo)


def _check_tensors(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for name, value in graph.tensors.items():
        found = tensors.get(name)
        if found is None or found.shape != value.shape:
            got = "nothing of that name" if found is None else list(found.shape)
            raise PlanError(
                f"model: the graph is of another network: {name} should be {list(value.shape)}, "
                f"got {got}"
            )
    return tensors


def _cuts(
    graph: ChannelGraph, stays: NDArray[np.bool_]
) -> tuple[dict[str, Indices], dict[str, Tensor]]:
    """Kept positions by tensor and dimension, and by selected norm layer; dimensions that stay
    whole are left out.
    """
    cuts: dict[str, Indices] = {}
    selects: dict[str, Tensor] = {}
    # A convolution, its batch norm and what reads it share one object, which is checked once.
    found: dict[bytes, Tensor] = {}
    for slot in graph.slots:
        kept = stays[slot.channels]
        if kept.all():
            continue
        index = found.setdefault(kept.tobytes(), torch.from_numpy(np.flatnonzero(kept)))
        for name in slot.parameters:
            if slot.role == "select":
                selects[name] = index
            elif slot.role != "selected scale":
                cuts.setdefault(name, {})[slot.dim] = index
    return cuts, selects


def _cut(
    tensors: Sequence[Tensor], indices: Sequence[Indices], plans: dict[Any, GatherPlan]
) -> list[Tensor]:
    """The kept entries of every tensor, in its own memory format; tensors of a device in one call.

    Args:
        tensors: any, on any devices.
        indices: of each tensor, kept positions by dimension.
        plans: that were made before for the same shapes and positions, and are added to.
    """
    places: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(i)
    results: dict[int, Tensor] = {}
    for at in places.values():
        key = tuple((tensors[i].shape, *((d, id(x)) for d, x in indices[i].items())) for i in at)
        if key not in plans:
            plans[key] = GatherPlan.of([tensors[i].shape for i in at], [indices[i] for i in at])
        results |= zip(at, gather_channels([tensors[i] for i in at], plans[key]), strict=True)
    return [results[i] for i in range(len(tensors))]


def _update_sizes(
    model: nn.Module,
    small: nn.Module,
    tensors: dict[str, Tensor],
    cuts: dict[str, Indices],
    whole: set[str],
) -> None:
    """The size attributes of every module that holds a tensor that was cut."""
    cut = {id(tensors[name]): name for name in cuts}
    for old, new in zip(model.modules(), small.modules(), strict=True):
        held = [
            cut[id(t)] for t in (*old._parameters.values(), *old._buffers.values()) if id(t) in cut
        ]
        if not held:
            continue
        if isinstance(new, _ConvNd) and isinstance(old, _ConvNd):
            _update_convolution(old, new, not whole.isdisjoint(held))
        elif isinstance(new, nn.Linear):
            new.out_features, new.in_features = new.weight.shape
        elif isinstance(new, nn.Embedding):
            new.num_embeddings, new.embedding_dim = new.weight.shape
        elif isinstance(new, _NormBase):
            vector = new.weight if new.weight is not None else new.running_mean
            if vector is not None:
                new.num_features = vector.shape[0]
        elif isinstance(new, nn.GroupNorm) and isinstance(old, nn.GroupNorm):
            width = new.weight.shape[0]
            new.num_groups, new.num_channels = old.num_groups * width // old.num_channels, width
        elif isinstance(new, nn.PReLU):
            new.num_parameters = new.weight.shape[0]


def _update_convolution(old: _ConvNd, new: _ConvNd, whole: bool) -> None:
    weight: object = new.weight
    if not isinstance(weight, Tensor):
        return  # computed by a parametrization, which was left whole
    lead, per_group = new.weight.shape[0], new.weight.shape[1]
    if whole:
        new.groups = old.groups * lead // old.weight.shape[0]
    if old.groups > 1 and (min(old.in_channels, old.out_channels) > old.groups or new.groups == 1):
        setattr(new, GROUPING, "whole" if whole else "within")
    sizes = (lead, per_group * new.groups)
    new.in_channels, new.out_channels = sizes if new.transposed else sizes[::-1]


def _insert_select(small: nn.Module, name: str, kept: Tensor) -> None:
    """Puts a ChannelSelect behind the norm layer called ``name``."""
    parent_name, _, attribute = name.rpartition(".")
    parent = small.get_submodule(parent_name)
    reader = parent._modules[attribute]
    if reader is None:
        raise PlanError(f"{name}: the selected norm layer is gone")
    device = next(
        (t.device for t in (*reader.parameters(), *reader.buffers())), torch.device("cpu")
    )
    # Of its own: other norm layers may keep the same channels by the same object.
    select = ChannelSelect(kept.to(device, copy=True))
    pair = nn.Sequential(OrderedDict(reader=reader, select=select))
    select.training = pair.training = reader.training
    parent._modules[attribute] = pair


_HINT = "the forward pass has sizes of its own; name the layer in keep="


def _verify(
    small: nn.Module, graph: ChannelGraph, stays: NDArray[np.bool_], selected: bool
) -> None:
    """Traces the pruned network and compares every shape that the plan predicts."""
    _verify_run(small, graph, graph.program, graph.maps, stays, selected, training=False)
    if graph.training_program is not None:
        _verify_run(
            small,
            graph,
            graph.training_program,
            graph.training_maps,
            stays,
            selected,
            training=True,
        )


def _verify_run(
    small: nn.Module,
    graph: ChannelGraph,
    program: Program,
    maps: Sequence[NDArray[np.int64] | None],
    stays: NDArray[np.bool_],
    selected: bool,
    *,
    training: bool,
) -> None:
    try:
        pruned = trace_program(small, graph.example(), training=training)
    except GraphError as problem:
        raise PlanError(f"the pruned network does not run ({problem}); {_HINT}") from problem
    after: list[tuple[Op, list[Value]]] = []
    for op in pruned.ops:
        if selected and op.name == "index_select" and _new_select(op.inputs):
            after[-1] = (after[-1][0], op.outputs)  # stands for the norm layer it is behind
        else:
            after.append((op, op.outputs))
    if len(program.ops) != len(after):
        raise PlanError(
            f"the pruned network runs {len(after)} ops, the unpruned one {len(program.ops)}; "
            f"{_HINT}"
        )
    for old, (new, outputs) in zip(program.ops, after, strict=True):
        if old.name != new.name or len(old.outputs) != len(outputs):
            raise PlanError(
                f"op {old.index}: the pruned network runs {new.name}, the unpruned one "
                f"{old.name}; {_HINT}"
            )
        if old.name in ARITHMETIC and _numbers(old) != _numbers(new):
            raise PlanError(
                f"op {old.index} ({old.name}): computes with {_numbers(new)} after pruning, with "
                f"{_numbers(old)} before, "
                f"a number that depends on how many channels there are; {_HINT}"
            )
        for made, got in zip(old.outputs, outputs, strict=True):
            expected = pruned_shape(made.shape, maps[made.id], stays)
            if got.shape != expected:
                raise PlanError(
                    f"op {old.index} ({old.name}): expected shape {list(expected)} after pruning, "
                    f"got {list(got.shape)}; {_HINT}"
                )


def _numbers(op: Op) -> list[float]:
    return [
        a
        for a in (*op.args, *op.kwargs.values())
        if isinstance(a, (int, float)) and not isinstance(a, bool)
    ]


def _new_select(inputs: list[Any]) -> bool:
    return any(value.name.endswith(".select.index") for value in inputs)


def _move_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    small: nn.Module,
    cuts: dict[str, Indices],
    selects: dict[str, Tensor],
) -> None:
    """Points the optimizer at the new parameters and cuts its state like the parameters
    themselves.
    """
    by_id = {id(tensor): name for name, tensor in tensors.items()}
    moved = dict(small.named_parameters())

    def new_name(name: str) -> str:
        owner, _, attribute = name.rpartition(".")
        return f"{owner}.reader.{attribute}" if owner in selects else name

    for group in optimizer.param_groups:
        if any(id(old) not in by_id for old in group["params"]):
            raise GraphError("optimizer: holds a parameter that is not one of the model's")
    found: dict[str, list[tuple[dict[str, Any], Indices]]] = {}
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            name = by_id[id(old)]
            new = moved[new_name(name)]
            state = optimizer.state.pop(old, None)
            group["params"][i] = new
            if state is not None:
                optimizer.state[new] = state = dict(state)
                for key, value in state.items():
                    shared = _shared(value, old, cuts.get(name, {}))
                    if shared:
                        found.setdefault(key, []).append((state, shared))
    plans: dict[Any, GatherPlan] = {}
    for key, entries in found.items():
        cut = _cut([state[key] for state, _ in entries], [shared for _, shared in entries], plans)
        for (state, _), value in zip(entries, cut, strict=True):
            state[key] = value


def _shared(value: Any, parameter: Tensor, cuts: Indices) -> Indices:
    """The cuts of a parameter along dimensions that an optimizer's state has in common with it."""
    if not isinstance(value, Tensor) or value.ndim != parameter.ndim:
        return {}
    return {dim: index for dim, index in cuts.items() if value.shape[dim] == parameter.shape[dim]}
