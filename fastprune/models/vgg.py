"""VGG with batch norm for 32x32 images, in the layouts of network slimming and of ABCPruner."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.graph import ChannelGraph, Units, units_by_name
from fastprune.models._network import CIFAR_INPUT, registry

__all__ = [
    "AbcVGG",
    "SlimmingVGG",
    "vgg11_cifar",
    "vgg13_cifar",
    "vgg16_cifar",
    "vgg16_cifar_abc",
    "vgg19_cifar",
]

_WIDTHS = (64, 128, 256, 512, 512)
_CONVS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def _trunk(depth: int, *, bias: bool, last_pool: bool) -> nn.Sequential:
    """Five stages of 3x3 convolutions, batch norm and ReLU, with max pooling between them."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage, (width, convs) in enumerate(zip(_WIDTHS, _CONVS[depth], strict=True)):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convs):
            layers += [
                nn.Conv2d(inputs, width, 3, padding=1, bias=bias),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            inputs = width
    if last_pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class SlimmingVGG(nn.Module):
    """Convolutions without bias in ``feature``, average pooling, one linear ``classifier``.

    Batch norm scales start at 0.5, so that a sparsity penalty can bring them to zero sooner.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.feature = _trunk(depth, bias=False, last_pool=False)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        for module in self.feature.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (9 * module.out_channels)))
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        # 2x2 for a 32x32 image.
        x = F.adaptive_avg_pool2d(self.feature(x), 1).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]


class AbcVGG(nn.Module):
    """Convolutions with bias in ``features``, a fifth max pooling, one linear ``classifier``."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.features = _trunk(depth, bias=True, last_pool=True)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # 1x1 for a 32x32 image.
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]


def _units(graph: ChannelGraph) -> Units:
    """One unit a convolution; the classifier's inputs follow."""
    return units_by_name(graph, r"(features?\.\d+)")


_register = {
    "input_shape": CIFAR_INPUT,
    "num_classes": 10,
    "normalization": None,
    "units": _units,
}


@registry.register("vgg11_cifar", **_register)
def vgg11_cifar(num_classes: int = 10) -> SlimmingVGG:
    """VGG-11 with batch norm for 32x32 images, 9.23 M parameters."""
    return SlimmingVGG(11, num_classes)


@registry.register("vgg13_cifar", **_register)
def vgg13_cifar(num_classes: int = 10) -> SlimmingVGG:
    """VGG-13 with batch norm for 32x32 images, 9.41 M parameters."""
    return SlimmingVGG(13, num_classes)


@registry.register("vgg16_cifar", **_register)
def vgg16_cifar(num_classes: int = 10) -> SlimmingVGG:
    """VGG-16 with batch norm for 32x32 images, 14.72 M parameters."""
    return SlimmingVGG(16, num_classes)


@registry.register("vgg19_cifar", **_register)
def vgg19_cifar(num_classes: int = 10) -> SlimmingVGG:
    """VGG-19 with batch norm for 32x32 images, 20.04 M parameters."""
    return SlimmingVGG(19, num_classes)


@registry.register("vgg16_cifar_abc", **_register)
def vgg16_cifar_abc(num_classes: int = 10) -> AbcVGG:
    """VGG-16 with batch norm and convolution biases, as ABCPruner has it, 14.73 M parameters."""
    return AbcVGG(16, num_classes)
