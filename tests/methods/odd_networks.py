"""The networks of ``tests/graph/test_odd_*.py`` and of the registry, for tests of methods."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from fastprune.models import resolve
from fastprune.testing import Case, fill

# Name and size of the images; small ones where the network allows.
REGISTERED = {
    "resnet20_cifar": 16,
    "vgg11_cifar": 32,
    "mobilenet_v1": 32,
    "mobilenet_v2": 32,
    "densenet40_cifar": 16,
    "googlenet_cifar": 8,
}


def odd_cases() -> list[Case]:
    """Cases with a convolution in them, which no plan is refused for."""
    found = []
    for path in sorted((Path(__file__).parents[1] / "graph").glob("test_odd_*.py")):
        spec = importlib.util.spec_from_file_location(f"cases_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [case for case in module.NETWORKS if case.groups and not case.refused]
    return found


def registered(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network in float64 with weights that are all different, and its example."""
    with torch.device("meta"):
        model = resolve(name).build().eval()
    model = fill(model.to_empty(device="cpu")).double()
    size = REGISTERED[name]
    return model, torch.zeros(1, 3, size, size, dtype=torch.float64)


class FlatVGG(nn.Module):
    """A VGG whose linear head reads the 4×4 maps of its last convolution, 16 positions each."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 6, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Sequential(nn.Linear(6 * 16, 10), nn.ReLU(), nn.Linear(10, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.features(x).flatten(1))
        return made
