"""The networks that graph benchmarks share, with the shapes the rival's own tables use."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from fastprune import models

__all__ = ["TRACED", "classifier", "network"]

TRACED = ("resnet50", "densenet121", "mobilenet_v2", "resnet56_cifar")


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, in eval mode, and one example input."""
    if name == "resnet56_cifar":
        # Shortcuts of option B: the rival crashes on the original's padded ones (option A).
        return models.build(name, shortcut="B").eval(), torch.randn(1, 3, 32, 32)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)


def classifier(model: nn.Module) -> nn.Module:
    """The last linear layer, whose outputs are the classes."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
