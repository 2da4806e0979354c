"""MobileNetV1 for 224x224 and for 32x32 images, and the wider MobileNetV2 of MetaPruning.

MobileNetV1's state dict is named as in marvis' ``pytorch-mobilenet``: ``model.0.0, model.1.0,
model.1.3, ..., fc``; for 32x32 images as in kuangliu's ``pytorch-cifar``: ``conv1, bn1,
layers.0.conv1, layers.0.bn1, layers.0.conv2, layers.0.bn2, ..., linear``; MobileNetV2's as
torchvision's, with one linear ``classifier``. torchvision's own MobileNetV2 is ``mobilenet_v2``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.graph import ChannelGraph, GeneTable, block_encodings, gene_table
from fastprune.models._network import CIFAR_INPUT, IMAGENET_NORMALIZATION, registry
from fastprune.options import Options

__all__ = [
    "CifarMobileNet",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV2Options",
    "mobilenet_cifar",
    "mobilenet_v1",
    "mobilenet_v2_metapruning",
]

Rule = Literal["paper", "table"]

# Outputs of the stem and of each block, and the strides at 224x224 pixels.
_V1 = (
    (32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1),
    (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip

# Expansion, outputs, blocks and stride of each stage between stem and last convolution.
_V2_STEM, _V2_LAST = 44, 1280
_V2 = (
    (1, 22, 1, 1), (6, 33, 2, 2), (6, 44, 3, 2), (6, 88, 4, 2), (6, 132, 3, 1), (6, 224, 3, 2),
    (6, 448, 1, 1),
)  # fmt: skip


def _layer(
    inputs: int, outputs: int, kernel: int, stride: int, conv_groups: int = 1
) -> list[nn.Module]:
    """Convolution and batch norm, as the members of a longer sequence."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=conv_groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


class MobileNetV1(nn.Module):
    """A 3x3 stem, thirteen blocks of a depthwise and a 1x1 convolution, and a linear head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        (inputs, stride), *blocks = _V1
        rows = [nn.Sequential(*_layer(3, inputs, 3, stride), nn.ReLU(inplace=True))]
        for outputs, stride in blocks:
            rows.append(
                nn.Sequential(
                    *_layer(inputs, inputs, 3, stride, inputs),
                    nn.ReLU(inplace=True),
                    *_layer(inputs, outputs, 1, 1),
                    nn.ReLU(inplace=True),
                )
            )
            inputs = outputs
        self.model = nn.Sequential(*rows)
        self.fc = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.model(x), 1).flatten(1)
        return self.fc(x)  # type: ignore[no-any-return]


class SeparableConv(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _layer(inputs, inputs, 3, stride, inputs)
        self.conv2, self.bn2 = _layer(inputs, outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class CifarMobileNet(nn.Module):
    """MobileNetV1 with stride 1 in the stem: 27 convolutions, two in each of thirteen blocks.

    Weights start as torch's layers leave them.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        (inputs, _), *blocks = _V1
        self.conv1, self.bn1 = _layer(3, inputs, 3, 1)
        rows = []
        for outputs, stride in blocks:
            rows.append(SeparableConv(inputs, outputs, stride))
            inputs = outputs
        self.layers = nn.Sequential(*rows)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        # 2x2 for a 32x32 image.
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """A 1x1 convolution to ``middle`` channels, a depthwise one, and a linear 1x1 convolution."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Sequential(*_layer(inputs, middle, 1, 1), nn.ReLU6(inplace=True)),
            nn.Sequential(*_layer(middle, middle, 3, stride, middle), nn.ReLU6(inplace=True)),
            *_layer(middle, outputs, 1, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """A 3x3 stem, seventeen inverted residuals, a 1x1 convolution and a linear head.

    Other than torchvision's, the first block expands too.

    Args:
        rule: a block's middle channels are its expansion times its inputs (``paper``) or its
            outputs (``table``).
    """

    def __init__(self, num_classes: int, rule: Rule) -> None:
        super().__init__()
        inputs = _V2_STEM
        rows: list[nn.Module] = [nn.Sequential(*_layer(3, inputs, 3, 2), nn.ReLU6(inplace=True))]
        for expansion, outputs, blocks, first_stride in _V2:
            for block in range(blocks):
                middle = expansion * (inputs if rule == "paper" else outputs)
                stride = 1 if block else first_stride
                rows.append(InvertedResidual(inputs, middle, outputs, stride))
                inputs = outputs
        rows.append(nn.Sequential(*_layer(inputs, _V2_LAST, 1, 1), nn.ReLU6(inplace=True)))
        self.features = nn.Sequential(*rows)
        self.classifier = nn.Linear(_V2_LAST, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]


class MobileNetV2Options(Options):
    """Options of MetaPruning's MobileNetV2.

    Attributes:
        rule: a block's middle channels are its expansion times its inputs (``paper``) or its
            outputs (``table``, as in the table of published structures).
    """

    rule: Rule = "paper"


def _v1_genes(graph: ChannelGraph) -> GeneTable:
    """Outputs of the stem and of all blocks but the last, which stays whole."""
    names = ["stem", *(f"block{i}" for i in range(1, len(_V1) - 1))]
    layers = ["model.0.0", *(f"model.{i}.3" for i in range(1, len(_V1) - 1))]
    rows = {name: [layer] for name, layer in zip(names, layers, strict=True)}
    # A block reads what it gets and what it gives; the last gives all.
    edges = [*names, None]
    encodings: dict[str, tuple[list[str | None], int]] = {"model.0": (["stem"], 32)}
    for i, ends in enumerate(pairwise(edges), start=1):
        encodings[f"model.{i}"] = (list(ends), 32)
    return gene_table(graph, rows, outputs=names, encodings=encodings)


def _v2_genes(graph: ChannelGraph) -> GeneTable:
    """Outputs of the stem, each stage and the last convolution, then each block's middle.

    The last convolution is fixed. The original search has an output for the stem and for every
    block instead, equal in a stage, and then the middles (``layouts``).
    """
    outputs = ["stem"]
    rows = {"stem": ["features.0.0"]}
    inner: dict[str, list[str]] = {}
    for stage, (_, _, blocks, _) in enumerate(_V2, start=1):
        rows[f"stage{stage}"] = [f"features.{len(outputs)}.conv.2"]
        for block in range(blocks):
            inner[f"stage{stage}.{block}"] = [f"features.{len(outputs)}.conv.0.0"]
            outputs.append(f"stage{stage}")
    rows["last"] = [f"features.{len(outputs)}.0"]
    return gene_table(
        graph,
        rows | inner,
        outputs=[*outputs, "last"],
        middles=list(inner),
        whole=["last"],
        layouts=[[*outputs, *inner]],
        encodings={
            "features.0": (["stem"], 32),
            **block_encodings(
                [f"features.{i}" for i in range(1, len(outputs))], list(inner), outputs, 64
            ),
            f"features.{len(outputs)}": (["last"], 32),
        },
    )


def _last_stride(model: nn.Module) -> None:
    """The published counts of MobileNetV2's genes stride the last 1x1 convolution by two."""
    if isinstance(model, MobileNetV2):
        last = model.get_submodule(f"features.{len(model.features) - 1}.0")
        if isinstance(last, nn.Conv2d):
            last.stride = (2, 2)


_register = {
    "input_shape": (3, 224, 224),
    "num_classes": 1000,
    "normalization": IMAGENET_NORMALIZATION,
}


@registry.register("mobilenet_v1", genes=_v1_genes, **_register)
def mobilenet_v1(num_classes: int = 1000) -> MobileNetV1:
    """MobileNetV1 for 224x224 images, 4.23 M parameters."""
    return MobileNetV1(num_classes)


@registry.register("mobilenet_cifar", input_shape=CIFAR_INPUT, num_classes=10, normalization=None)
def mobilenet_cifar(num_classes: int = 10) -> CifarMobileNet:
    """MobileNetV1 with a stem of stride 1 for 32x32 images, 3.22 M parameters."""
    return CifarMobileNet(num_classes)


@registry.register(
    "mobilenet_v2_metapruning",
    options=MobileNetV2Options,
    genes=_v2_genes,
    gene_rule="rule",
    quirks=_last_stride,
    **_register,
)
def mobilenet_v2_metapruning(num_classes: int = 1000, *, rule: Rule = "paper") -> MobileNetV2:
    """MobileNetV2 as wide as MetaPruning searches it, 5.31 M parameters."""
    return MobileNetV2(num_classes, rule)
