"""Pre-activation bottleneck ResNets for 32x32 images, as network slimming has them."""

from __future__ import annotations

import math

import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor, nn

from fastprune.models._network import CIFAR_INPUT, registry
from fastprune.options import Options

__all__ = ["PreResNet", "PreResNetOptions", "preresnet164_cifar"]

_EXPANSION = 4


def blocks_per_stage(depth: int) -> int:
    """The n of a depth 9n+2.

    Raises:
        ValueError: the depth is not of that form.
    """
    if depth < 11 or (depth - 2) % 9:
        raise ValueError("expected a depth of 9n+2 (11, 20, 29, ..., 164)")
    return (depth - 2) // 9


class PreResNetOptions(Options):
    """Options of the pre-activation ResNets.

    Attributes:
        depth: 9n+2.
    """

    depth: int = 164

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        blocks_per_stage(depth)
        return depth


class PreActivationBottleneck(nn.Module):
    """Batch norm and ReLU before each convolution (1x1, 3x3, 1x1), beside a bare residual.

    Args:
        width: of the two narrow convolutions; the block gives four times as many channels.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * _EXPANSION
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        residual = x if self.downsample is None else self.downsample(x)
        return out + residual  # type: ignore[no-any-return]


class PreResNet(nn.Module):
    """A 3x3 stem, three stages of bottlenecks, a last batch norm and a linear head ``fc``.

    Batch norm scales start at 0.5, so that a sparsity penalty can bring them to zero sooner.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16 * _EXPANSION, 32, blocks, stride=2)
        self.layer3 = _stage(32 * _EXPANSION, 64, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * _EXPANSION)
        self.fc = nn.Linear(64 * _EXPANSION, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1)
        return self.fc(x)  # type: ignore[no-any-return]


def _stage(inputs: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    outputs = width * _EXPANSION
    rest = (PreActivationBottleneck(outputs, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(PreActivationBottleneck(inputs, width, stride), *rest)


@registry.register(
    "preresnet164_cifar",
    options=PreResNetOptions,
    input_shape=CIFAR_INPUT,
    num_classes=10,
    normalization=None,
)
def preresnet164_cifar(num_classes: int = 10, *, depth: int = 164) -> PreResNet:
    """Pre-activation ResNet-164 for 32x32 images, 1.70 M parameters; any depth 9n+2 by option."""
    return PreResNet(depth, num_classes)
