"""First-order estimate of what dropping a channel does to the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastprune.criteria._scores import Scores, join_slots, registry, summed
from fastprune.errors import FastpruneError
from fastprune.graph import ChannelGraph

__all__ = ["taylor"]


@registry.register("taylor", data=True)
def taylor(
    model: nn.Module, graph: ChannelGraph, *, batches: Iterable[tuple[Tensor, Tensor]]
) -> Scores:
    """|Σ w·∂L/∂w| of each channel's weights, mean over its slots (out and in), divided by the
    group's mean.

    Molchanov et al., *Importance Estimation for Neural Network Pruning*, CVPR 2019. L is the cross
    entropy summed over ``batches``; the network is run in evaluation mode, and its gradients are
    left as they were.

    Args:
        batches: (images ``[N, ...]``, labels ``[N]``).

    Raises:
        FastpruneError: there is no batch, or every weight is frozen.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise FastpruneError("criterion 'taylor': every weight is frozen, so there is no gradient")
    device = next(iter(weights.values())).device
    gradients = {name: torch.zeros_like(p) for name, p in weights.items()}
    training = [m for m in model.modules() if m.training]
    model.eval()
    seen = 0
    try:
        with torch.enable_grad():
            for images, labels in batches:
                loss = functional.cross_entropy(
                    model(images.to(device)), labels.to(device), reduction="sum"
                )
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, found, strict=True):
                    if gradient is not None:
                        gradients[name] += gradient
                seen += len(labels)
    finally:
        for module in training:
            module.training = True
    if not seen:
        raise FastpruneError("criterion 'taylor': got no batch of (images, labels)")

    def effect(parameter: Tensor, name: str, out: Tensor) -> Tensor:
        if name not in gradients:
            return out.zero_()  # frozen
        return torch.mul(parameter, gradients[name].float(), out=out)

    return join_slots(model, graph, summed(effect, torch.abs))
