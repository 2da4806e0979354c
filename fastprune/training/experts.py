"""Experts: trained networks without their heads, whose features a fusion head reads."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from fastprune.errors import GraphError
from fastprune.graph.trace import trace_program
from fastprune.nn import FusionHead

__all__ = ["Expert", "FusedNetwork", "head_of"]


def head_of(model: nn.Module, input_shape: Sequence[int]) -> str:
    """The name of the ``nn.Linear`` whose output is the network's logits.

    Args:
        model: left as it is.
        input_shape: ``(C, H, W)`` of an image.

    Raises:
        GraphError: there is no such layer, or its weights are used more than once.
    """
    like = next(model.parameters())
    example = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    program = trace_program(model, example)
    made = program.outputs[0].producer if program.outputs else -1
    if made < 0 or program.ops[made].name != "linear":
        found = program.ops[made].name if made >= 0 else "nothing"
        raise GraphError(
            f"the network's output is made by {found}; expected a last Linear layer that gives "
            "the logits, since features are what it reads"
        )
    weight = next((v for v in program.ops[made].inputs if v.source == "parameter"), None)
    name = weight.name.removesuffix(".weight") if weight is not None else ""
    readers = [op for op in program.ops if weight is not None and weight in op.inputs]
    if weight is None or not isinstance(dict(model.named_modules()).get(name), nn.Linear):
        raise GraphError(
            "the network's logits are made by a call of linear outside an nn.Linear; expected "
            "a layer that can be left out"
        )
    if len(readers) > 1 or program.ops[made].inputs[0].shape[:-1] != (1,):
        raise GraphError(
            f"{name}: expected a last layer that is called once and reads [N, features]"
        )
    return name


class Expert(nn.Module):
    """A trained network without its head, frozen: images to features ``[N, T]`` in (-1, 1).

    The features are tanh of what the last Linear layer read. The same images in batches of the
    same sizes give the same bits wherever it runs on one kind of device, with any number of
    threads; batches of other sizes are rounded differently, by some 1e-5.

    Args:
        model: an image classifier that ends with an ``nn.Linear``; copied.
        input_shape: ``(C, H, W)`` of an image.

    Raises:
        GraphError: the network has no such last layer.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        super().__init__()
        name = head_of(model, input_shape)
        body = copy.deepcopy(model)
        head = body.get_submodule(name)
        self.features = int(head.in_features)  # type: ignore[arg-type]
        if name:
            above, _, last = name.rpartition(".")
            # Looked up in the modules, since containers such as Sequential name theirs "0", "1".
            body.get_submodule(above)._modules[last] = nn.Identity()
        else:
            body = nn.Identity()
        self.body = body.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Expert:
        """Stays in evaluation mode: a frozen network's running statistics are frozen too."""
        super().train(False)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``[N, T]`` of images ``[N, C, H, W]``."""
        return torch.tanh(self.body(x))


class FusedNetwork(nn.Module):
    """Experts and the head that reads all their features, as one network.

    Args:
        experts: in the order of the head's inputs.
        head: gets their features side by side.

    Raises:
        ValueError: the head reads another number of features than the experts give.
    """

    def __init__(self, experts: Sequence[Expert], head: FusionHead) -> None:
        super().__init__()
        given = sum(expert.features for expert in experts)
        if given != head.features:
            raise ValueError(f"head: expected {given} features, got one of {head.features}")
        self.experts = nn.ModuleList(experts)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, classes]`` of images ``[N, C, H, W]``."""
        logits: torch.Tensor = self.head(torch.cat([expert(x) for expert in self.experts], 1))
        return logits
