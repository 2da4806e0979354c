"""GoogLeNet with batch norm for 32x32 images, in ABCPruner's layout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.graph import ChannelGraph, Units, units_by_name
from fastprune.models._network import CIFAR_INPUT, registry

__all__ = ["CifarGoogLeNet", "googlenet_cifar"]

# block: (1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection)
_BLOCKS = {
    "a3": (64, 96, 128, 16, 32, 32),
    "b3": (128, 128, 192, 32, 96, 64),
    "a4": (192, 96, 208, 16, 48, 64),
    "b4": (160, 112, 224, 24, 64, 64),
    "c4": (128, 128, 256, 24, 64, 64),
    "d4": (112, 144, 288, 32, 64, 64),
    "e4": (256, 160, 320, 32, 128, 128),
    "a5": (256, 160, 320, 32, 128, 128),
    "b5": (384, 192, 384, 48, 128, 128),
}
_STEM = 192
_POOLED_AFTER = ("b3", "e4")


def _conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """Convolution with bias that keeps the image's size, batch norm, ReLU."""
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class Inception(nn.Module):
    """Four branches side by side; two 3x3 convolutions stand for the 5x5."""

    def __init__(
        self, inputs: int, n1x1: int, reduce3: int, n3x3: int, reduce5: int, n5x5: int, pool: int
    ) -> None:
        super().__init__()
        self.branch1x1 = nn.Sequential(*_conv(inputs, n1x1, 1))
        self.branch3x3 = nn.Sequential(*_conv(inputs, reduce3, 1), *_conv(reduce3, n3x3, 3))
        self.branch5x5 = nn.Sequential(
            *_conv(inputs, reduce5, 1), *_conv(reduce5, n5x5, 3), *_conv(n5x5, n5x5, 3)
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), *_conv(inputs, pool, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1x1, self.branch3x3, self.branch5x5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], 1)


class CifarGoogLeNet(nn.Module):
    """A stem ``pre_layers``, blocks ``inception_a3 .. inception_b5`` and a head ``linear``."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pre_layers = nn.Sequential(*_conv(3, _STEM, 3))
        inputs = _STEM
        for name, widths in _BLOCKS.items():
            self.add_module(f"inception_{name}", Inception(inputs, *widths))
            n1x1, _, n3x3, _, n5x5, pool = widths
            inputs = n1x1 + n3x3 + n5x5 + pool
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_layers(x)
        for name in _BLOCKS:
            x = getattr(self, f"inception_{name}")(x)
            if name in _POOLED_AFTER:
                x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)  # type: ignore[no-any-return]


def _units(graph: ChannelGraph) -> Units:
    """One unit a block, for what stays inside it: both reductions and the first of the two 3x3
    that stand for the 5x5.
    """
    return units_by_name(graph, r"(inception_\w+)\.(?:branch3x3\.0|branch5x5\.0|branch5x5\.3)")


@registry.register(
    "googlenet_cifar", input_shape=CIFAR_INPUT, num_classes=10, normalization=None, units=_units
)
def googlenet_cifar(num_classes: int = 10) -> CifarGoogLeNet:
    """GoogLeNet with batch norm for 32x32 images, 6.17 M parameters."""
    return CifarGoogLeNet(num_classes)
