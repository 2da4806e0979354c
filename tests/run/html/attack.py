"""Names that would change a page, were they not escaped; a network that has them."""

from __future__ import annotations

__all__ = ["ATTACK", "NETWORK"]

ATTACK = "<script>alert(1)<∕script>\"'&amp;<img src=x onerror=alert(2)>"

NETWORK = """
import torch
from torch import nn

class Hostile(nn.Module):
    def __init__(self, num_classes=10, shape="&"):
        super().__init__()
        self.add_module(NAME, nn.Conv2d(3, 8, 3, stride=4, bias=False))
        self.add_module("$x^2$" + NAME, nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        for name in (NAME, "$x^2$" + NAME):
            x = torch.relu(getattr(self, name)(x))
        return self.head(x.mean((2, 3)))
"""
