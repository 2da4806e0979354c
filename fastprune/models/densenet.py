"""DenseNets without bottlenecks for 32x32 images, as network slimming has them (depth 3n+4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from fastprune.graph import ChannelGraph, Units, units_by_name
from fastprune.graph.units import Following
from fastprune.models._network import CIFAR_INPUT, registry
from fastprune.options import Options

__all__ = ["CifarDenseNet", "DenseNetOptions", "densenet40_cifar"]


def layers_per_block(depth: int) -> int:
    """The n of a depth 3n+4.

    Raises:
        ValueError: the depth is not of that form.
    """
    if depth < 7 or (depth - 4) % 3:
        raise ValueError("expected a depth of 3n+4 (7, 10, 13, ..., 40)")
    return (depth - 4) // 3


class DenseNetOptions(Options):
    """Options of the CIFAR DenseNets.

    Attributes:
        depth: 3n+4.
        growth: channels that each layer adds; the stem has twice as many.
    """

    depth: int = 40
    growth: int = Field(12, ge=1)

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        layers_per_block(depth)
        return depth


class DenseLayer(nn.Module):
    """Batch norm, ReLU, a 3x3 convolution; its ``growth`` channels go behind the input's."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv1(F.relu(self.bn1(x)))), 1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1x1 convolution of as many channels, 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class CifarDenseNet(nn.Module):
    """Three dense blocks ``dense1 .. dense3`` without compression, and a linear head ``fc``.

    Batch norm scales start at 0.5, so that a sparsity penalty can bring them to zero sooner.
    """

    def __init__(self, depth: int, growth: int, num_classes: int) -> None:
        super().__init__()
        layers = layers_per_block(depth)
        channels = 2 * growth
        added = layers * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.dense1 = _dense_block(channels, layers, growth)
        self.trans1 = Transition(channels + added)
        self.dense2 = _dense_block(channels + added, layers, growth)
        self.trans2 = Transition(channels + 2 * added)
        self.dense3 = _dense_block(channels + 2 * added, layers, growth)
        self.bn = nn.BatchNorm2d(channels + 3 * added)
        self.fc = nn.Linear(channels + 3 * added, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = F.relu(self.bn(self.dense3(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(x)  # type: ignore[no-any-return]


def _dense_block(inputs: int, layers: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(inputs + i * growth, growth) for i in range(layers)))


def _units(graph: ChannelGraph) -> Units:
    """One unit a dense layer, for what it adds. A transition is as wide as if each layer of the
    block before it added as much as the last one.
    """
    following = []
    into = "conv1"
    for number in (1, 2):
        block = [name for name in graph.tensors if name.startswith(f"dense{number}.")]
        layers = sum(name.endswith(".conv1.weight") for name in block)
        last, transition = f"dense{number}.{layers - 1}.conv1", f"trans{number}.conv1"
        if transition in graph.by_name:
            following.append(_following(graph, transition, {into: 1, last: layers}))
        into = transition
    return units_by_name(graph, r"(dense\d+\.\d+)\.conv1", following=tuple(following))


def _following(graph: ChannelGraph, group: str, terms: dict[str, int]) -> Following:
    """Layers that are not prunable are part of what is fixed."""
    fixed = sum(
        multiple * graph.tensors[f"{name}.weight"].shape[0]
        for name, multiple in terms.items()
        if name not in graph.by_name
    )
    return Following(group, fixed, tuple((n, m) for n, m in terms.items() if n in graph.by_name))


@registry.register(
    "densenet40_cifar",
    options=DenseNetOptions,
    input_shape=CIFAR_INPUT,
    num_classes=10,
    normalization=None,
    units=_units,
)
def densenet40_cifar(num_classes: int = 10, *, depth: int = 40, growth: int = 12) -> CifarDenseNet:
    """DenseNet-40 of growth 12 for 32x32 images, 1.06 M parameters; any depth 3n+4 by option."""
    return CifarDenseNet(depth, growth, num_classes)
