"""A residual network that trains in an instant."""

from __future__ import annotations

import torch
from torch import nn


class Tiny(nn.Module):
    """Two halvings, one residual block, a linear head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(x + self.bn3(self.conv2(torch.relu(self.bn2(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


def network(num_classes: int = 10) -> Tiny:
    return Tiny(num_classes)
