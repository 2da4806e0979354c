"""torchvision's classification networks; importing this does not import torchvision."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fastprune.errors import ConfigError, FastpruneError, WeightsError, nearest
from fastprune.graph import (
    ChannelGraph,
    GeneTable,
    block_encodings,
    gene_table,
    units_by_name,
)
from fastprune.models._network import CIFAR_INPUT, Network

__all__ = ["torchvision_genes", "torchvision_names", "torchvision_network"]

# Auxiliary heads would make the network give a tuple while training, and torchvision's own
# initialisation of these two takes half a minute and warns unless it is chosen.
_CHOSEN: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}

_STEMS = ("large", "small")

# What a unit of a code governs: the first convolution of a basic block, both narrow ones of a
# bottleneck, every convolution of a VGG; the name of the unit is captured.
_BASIC = r"(layer\d+\.\d+)\.conv1"
_BOTTLENECK = r"(layer\d+\.\d+)\.conv[12]"
_UNITS = {
    "resnet18": _BASIC,
    "resnet34": _BASIC,
    "resnet50": _BOTTLENECK,
    "resnet101": _BOTTLENECK,
    "resnet152": _BOTTLENECK,
    "vgg16_bn": r"(features\.\d+)",
}

# Networks that have genes, and those whose genes are of another: MetaPruning's MobileNetV2 is
# wider than torchvision's.
torchvision_genes = ("resnet50", "resnet101", "resnet152")
_GENE_NETWORKS = {"mobilenet_v2": "mobilenet_v2_metapruning"}


def _bottleneck_genes(graph: ChannelGraph) -> GeneTable:
    """Outputs of the stem and of each stage, then the two inner convolutions of each block.

    The last stage's output is fixed; the original search leaves its id out (``layouts``).
    """
    weights = [re.fullmatch(r"(layer\d+\.\d+)\.conv1\.weight", row.weight) for row in graph.layers]
    blocks = [match[1] for match in weights if match]
    stages = list(dict.fromkeys(block.partition(".")[0] for block in blocks))
    rows = {"conv1": ["conv1"]}
    rows |= {stage: [f"{stage}.0.conv3"] for stage in stages}
    rows |= {block: [f"{block}.conv1", f"{block}.conv2"] for block in blocks}
    outputs = ["conv1", *(block.partition(".")[0] for block in blocks)]
    return gene_table(
        graph,
        rows,
        outputs=outputs,
        middles=blocks,
        whole=stages[-1:],
        layouts=[[name for name in rows if name != stages[-1]]],
        encodings={"conv1": (["conv1"], 32)} | block_encodings(blocks, blocks, outputs, 32),
    )


def _stem_padding(model: nn.Module) -> None:
    """The published counts of ResNet-50's genes pad its 7x7 stem by one pixel instead of three."""
    stem = model.get_submodule("conv1")
    if isinstance(stem, nn.Conv2d):
        stem.padding = (1, 1)


def _small_stem(model: nn.Module) -> None:
    """Makes a ResNet one for small images, in place: a 3x3 stem of stride 1, no max pooling.

    Parameters keep their names. The stem's weights are drawn as torchvision draws them.
    """
    large = model.get_submodule("conv1")
    if not isinstance(large, nn.Conv2d):
        raise TypeError(f"conv1: expected a Conv2d, got a {type(large).__name__}")
    stem = nn.Conv2d(large.in_channels, large.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule("conv1", stem)
    model.set_submodule("maxpool", nn.Identity())


def _changed_by_stem(options: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is published for the small stem: no usual weights, and images as CIFAR's."""
    if options.get("stem") != "small":
        return {}
    return {"input_shape": CIFAR_INPUT, "normalization": None, "quirks": None}


def _models() -> ModuleType:
    """The module ``torchvision.models``.

    Raises:
        FastpruneError: torchvision is not installed, or does not fit the installed torch.
    """
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        if error.name not in ("torchvision", "torchvision.models"):
            raise _broken(error) from error
        raise FastpruneError(
            "torchvision is not installed; mend it with: python -m pip install torchvision"
        ) from error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise _broken(error) from error


def _broken(error: Exception) -> FastpruneError:
    try:
        installed = version("torchvision")
    except PackageNotFoundError:
        installed = "of unknown version"
    reason = str(error).strip().partition("\n")[0]
    return FastpruneError(
        f"torchvision {installed} does not work with torch {torch.__version__} ({reason}); "
        "mend it with: python -m pip install --upgrade --force-reinstall torch torchvision"
    )


def torchvision_names() -> list[str]:
    """The names of torchvision's classification networks, without the prefix.

    Raises:
        FastpruneError: torchvision is not installed, or does not fit the installed torch.
    """
    models = _models()
    names: list[str] = models.list_models(module=models)
    return names


def torchvision_network(name: str) -> Network:
    """The network that torchvision calls ``name``.

    Its options are those of torchvision's function, and for a ResNet ``stem``: ``large`` is
    torchvision's own for 224x224 images, ``small`` one for 32x32 images (3x3 of stride 1, no max
    pooling), of which no weights are published.

    Raises:
        FastpruneError: torchvision does not work here, or has no such classification network.
    """
    models = _models()
    names = torchvision_names()
    if name not in names:
        raise FastpruneError(
            f"models: torchvision has no classification network {name!r}{nearest(name, names)}"
        )
    # Members are in order of publication; the first suits the builder's own sizes, except that
    # some networks begin with weights fine-tuned at a larger image than the builder's.
    members = models.get_model_weights(name).__members__
    usual = members.get("IMAGENET1K_V1") or members.get("IMAGENET1K_SWAG_LINEAR_V1")
    preset = (usual or next(iter(members.values()))).transforms()
    size = preset.crop_size[0]
    resnet = models.get_model_builder(name).__module__ == f"{models.__name__}.resnet"

    def make(num_classes: int | None, *, weights: str | None = None, **options: Any) -> nn.Module:
        given: dict[str, Any] = {**_CHOSEN.get(name, {}), **options}
        if "stem" in given:
            stem = given.pop("stem")
            if not resnet:
                raise ConfigError(
                    f"torchvision:{name}: stem: only torchvision's ResNets have one to choose"
                )
            if stem not in _STEMS:
                raise ConfigError(
                    f"torchvision:{name}: stem: expected {' or '.join(_STEMS)}, got {stem!r}"
                )
            if stem == "small":
                if weights is not None:
                    raise WeightsError(
                        f"weights {weights} of torchvision:{name} are for its large stem, got "
                        "stem=small; expected a file with weights of the small one, or none"
                    )
                model = make(num_classes, **given)
                _small_stem(model)
                return model
        if num_classes is not None:
            given["num_classes"] = num_classes
        if weights is None:
            return _build(models, name, given)
        if num_classes not in (None, 1000):
            raise WeightsError(
                f"weights {weights} of torchvision:{name} are for 1000 classes, "
                f"got num_classes={num_classes}"
            )
        try:
            return _build(models, name, {**given, "weights": weights})
        # A download that fails is an OSError (URLError is one), a damaged one a RuntimeError.
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise WeightsError(
                f"weights {weights} of torchvision:{name} could not be fetched: {reason}"
            ) from error

    return Network(
        name=f"torchvision:{name}",
        make=make,
        input_shape=(3, size, size),
        num_classes=1000,
        normalization=(tuple(preset.mean), tuple(preset.std)),
        published=("DEFAULT", *(member for member in members if member != "DEFAULT")),
        units=partial(units_by_name, pattern=_UNITS[name]) if name in _UNITS else None,
        genes=_bottleneck_genes if name in torchvision_genes else None,
        gene_network=_GENE_NETWORKS.get(name),
        quirks=_stem_padding if name in torchvision_genes else None,
        changed=_changed_by_stem if resnet else None,
        summary=f"{name} of torchvision",
    )


def _build(models: ModuleType, name: str, given: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = models.get_model(name, **given)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"torchvision:{name}: could not be built so: {reason}") from error
    return model
