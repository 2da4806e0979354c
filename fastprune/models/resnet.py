"""ResNets for 32x32 images: the CIFAR ResNets of depth 6n+2, and ResNet-18 with a 3x3 stem.

State dicts are named as in akamaster's ``pytorch_resnet_cifar10`` and, for ResNet-18, kuangliu's
``pytorch-cifar``: ``conv1, bn1, layer1.0.conv1, ..., linear``; a projection is ``shortcut.0,
shortcut.1``. The wide ResNet-32, of which no weights are published, is named alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor, nn

from fastprune.graph import (
    ChannelGraph,
    GeneTable,
    Units,
    block_encodings,
    gene_table,
    units_by_name,
)
from fastprune.models._network import CIFAR_INPUT, IMAGENET_NORMALIZATION, registry
from fastprune.options import Options

__all__ = [
    "CifarResNet",
    "ResNetOptions",
    "resnet18_cifar",
    "resnet20_cifar",
    "resnet32_cifar",
    "resnet44_cifar",
    "resnet56_cifar",
    "resnet110_cifar",
    "wide_resnet32_cifar",
]

Shortcut = Literal["A", "B"]


def blocks_per_stage(depth: int) -> int:
    """The n of a depth 6n+2.

    Raises:
        ValueError: the depth is not of that form.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError("expected a depth of 6n+2 (8, 14, 20, 26, 32, ...)")
    return (depth - 2) // 6


class ResNetOptions(Options):
    """Options of the CIFAR ResNets.

    Attributes:
        depth: 6n+2; None takes the depth in the network's name.
        shortcut: where a stage narrows the image, ``A`` strides and pads with zero channels (no
            parameters, as in the paper's CIFAR networks), ``B`` projects with a 1x1 convolution
            and batch norm.
    """

    depth: int | None = None
    shortcut: Shortcut = "A"

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int | None) -> int | None:
        if depth is not None:
            blocks_per_stage(depth)
        return depth


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, with zero channels before and behind.

    Args:
        channels: channels that come out, twice those that go in.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pad = channels // 4

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            if shortcut == "A":
                self.shortcut = PaddedShortcut(width)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
                )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks ``layer1, layer2, ...`` and a linear head.

    Args:
        widths: channels of each stage; the first keeps the image's size, each other halves it.
            Option A needs each to be twice the one before.
        blocks: basic blocks of each stage.
    """

    def __init__(
        self, widths: Sequence[int], blocks: Sequence[int], num_classes: int, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        inputs = widths[0]
        for stage, width, count in zip(self.stages, widths, blocks, strict=True):
            stride = 1 if stage == "layer1" else 2
            first = BasicBlock(inputs, width, stride, shortcut)
            rest = (BasicBlock(width, width, 1, shortcut) for _ in range(count - 1))
            self.add_module(stage, nn.Sequential(first, *rest))
            inputs = width
        self.linear = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)  # type: ignore[no-any-return]


def _cifar(depth: int, num_classes: int, shortcut: Shortcut) -> CifarResNet:
    return CifarResNet((16, 32, 64), (blocks_per_stage(depth),) * 3, num_classes, shortcut)


def _units(graph: ChannelGraph) -> Units:
    """One unit a block, for what its first convolution makes; the residual stream is of none."""
    return units_by_name(graph, r"(layer\d+\.\d+)\.conv1")


def _genes(graph: ChannelGraph) -> GeneTable:
    """With projections, an output of each stage, the last one fixed; then each block's middle.

    Shortcuts of option A add zero channels at fixed places, so that every stage would have to be
    twice as wide as the one before: outputs of stages are of no id then.
    """
    layers = [layer.weight.rpartition(".")[0] for layer in graph.layers]
    matches = [re.fullmatch(r"(layer\d+\.\d+)\.conv1", name) for name in layers]
    blocks = [match[1] for match in matches if match]
    stages: list[str] = []
    if any(name.endswith(".shortcut.0") for name in layers):
        stages = list(dict.fromkeys(block.partition(".")[0] for block in blocks))
    # The first stage has no projection: its output is the stem's.
    rows = {stage: ["conv1" if stage == "layer1" else f"{stage}.0.conv2"] for stage in stages}
    rows |= {block: [f"{block}.conv1"] for block in blocks}
    outputs = [*stages[:1], *(block.partition(".")[0] for block in blocks)] if stages else []
    edges = outputs or [None] * (len(blocks) + 1)
    return gene_table(
        graph,
        rows,
        outputs=outputs,
        middles=blocks,
        whole=stages[-1:],
        encodings={"conv1": (edges[:1], 32)} | block_encodings(blocks, blocks, edges, 32),
    )


# The published weights of this family were trained on images normalised by ImageNet's statistics.
_register = {
    "options": ResNetOptions,
    "input_shape": CIFAR_INPUT,
    "num_classes": 10,
    "normalization": IMAGENET_NORMALIZATION,
    "units": _units,
    "genes": _genes,
}


@registry.register("resnet20_cifar", **_register)
def resnet20_cifar(
    num_classes: int = 10, *, depth: int | None = None, shortcut: Shortcut = "A"
) -> CifarResNet:
    """ResNet-20 for 32x32 images, 0.27 M parameters."""
    return _cifar(20 if depth is None else depth, num_classes, shortcut)


@registry.register("resnet32_cifar", **_register)
def resnet32_cifar(
    num_classes: int = 10, *, depth: int | None = None, shortcut: Shortcut = "A"
) -> CifarResNet:
    """ResNet-32 for 32x32 images, 0.46 M parameters."""
    return _cifar(32 if depth is None else depth, num_classes, shortcut)


@registry.register("resnet44_cifar", **_register)
def resnet44_cifar(
    num_classes: int = 10, *, depth: int | None = None, shortcut: Shortcut = "A"
) -> CifarResNet:
    """ResNet-44 for 32x32 images, 0.66 M parameters."""
    return _cifar(44 if depth is None else depth, num_classes, shortcut)


@registry.register("resnet56_cifar", **_register)
def resnet56_cifar(
    num_classes: int = 10, *, depth: int | None = None, shortcut: Shortcut = "A"
) -> CifarResNet:
    """ResNet-56 for 32x32 images, 0.85 M parameters."""
    return _cifar(56 if depth is None else depth, num_classes, shortcut)


@registry.register("resnet110_cifar", **_register)
def resnet110_cifar(
    num_classes: int = 10, *, depth: int | None = None, shortcut: Shortcut = "A"
) -> CifarResNet:
    """ResNet-110 for 32x32 images, 1.73 M parameters."""
    return _cifar(110 if depth is None else depth, num_classes, shortcut)


_projected = {
    "input_shape": CIFAR_INPUT,
    "num_classes": 10,
    "normalization": None,
    "units": _units,
    "genes": _genes,
}


@registry.register("resnet18_cifar", **_projected)
def resnet18_cifar(num_classes: int = 10) -> CifarResNet:
    """ResNet-18 with a 3x3 stem for 32x32 images, 11.17 M parameters."""
    return CifarResNet((64, 128, 256, 512), (2, 2, 2, 2), num_classes, "B")


@registry.register("wide_resnet32_cifar", **_projected)
def wide_resnet32_cifar(num_classes: int = 10) -> CifarResNet:
    """ResNet-32 twice as wide for 32x32 images, 1.86 M parameters.

    The ``wrn32`` of VITA-Group's ``Structure-LTH``, which "Coarsening the Granularity" (ICML 2022)
    calls Wide-ResNet-32-2: ReLU after each batch norm and each sum, unlike the pre-activation
    networks of Zagoruyko and Komodakis, and 1x1 projections with batch norm.
    """
    return CifarResNet((32, 64, 128), (blocks_per_stage(32),) * 3, num_classes, "B")
