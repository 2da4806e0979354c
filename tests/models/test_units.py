"""The units of the networks of ABCPruner: its published figures, and the table they follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fastprune as fp
from fastprune.graph import ChannelGraph, PruningPlan, Units
from fastprune.models import list_networks, resolve

VECTORS = [
    vector
    for vector in json.loads((Path(__file__).parents[1] / "vectors.json").read_text())["vectors"]
    if vector["method"] == "abc"
]
NAMES = {"vgg16_cifar (conv bias, ABC classifier)": "vgg16_cifar_abc"}


def units_of(name: str, keep: tuple[str, ...] = (), **options: Any) -> tuple[ChannelGraph, Units]:
    """The graph of a network that has no weights, and its units."""
    network = resolve(name)
    assert network.units is not None
    assert network.input_shape is not None
    with torch.device("meta"):
        model = network.build(**options).eval()
    graph = fp.trace(model, torch.zeros(1, *network.input_shape, device="meta"), keep=keep)
    return graph, network.units(graph)


@pytest.mark.parametrize(
    "vector", VECTORS, ids=lambda v: f"{v['network'].split()[0]}-{v['code'][0]}-{v['code'][-1]}"
)
def test_published_figures(vector: dict[str, Any]) -> None:
    graph, units = units_of(NAMES.get(vector["network"], vector["network"]))
    widths = units.widths(graph, vector["code"])
    plan = PruningPlan({name: tuple(range(width)) for name, width in widths.items()})
    cost, expect = graph.cost(widths), vector["expect"]

    assert (cost.params, cost.channels) == (expect["params"], expect["channels"])
    assert cost.macs == expect["macs_conv_fc"]
    assert graph.count(plan, "thop").macs == expect["thop031"]


def test_every_network_of_the_published_table_is_there() -> None:
    assert {NAMES.get(v["network"], v["network"]) for v in VECTORS} == {
        "vgg16_cifar_abc", "resnet56_cifar", "resnet110_cifar", "googlenet_cifar",
        "densenet40_cifar", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "count", "first"),
    [
        ("vgg11_cifar", {}, 8, "feature.0"),
        ("vgg19_cifar", {}, 16, "feature.0"),
        ("vgg16_bn", {}, 13, "features.0"),
        ("resnet20_cifar", {}, 9, "layer1.0"),
        ("resnet20_cifar", {"depth": 8, "shortcut": "B"}, 3, "layer1.0"),
        ("resnet18_cifar", {}, 8, "layer1.0"),
        ("wide_resnet32_cifar", {}, 15, "layer1.0"),
        ("densenet40_cifar", {"depth": 10, "growth": 5}, 6, "dense1.0"),
        ("resnet50", {}, 16, "layer1.0"),
        ("resnet50", {"stem": "small"}, 16, "layer1.0"),
    ],
)
def test_units_of_the_families(name: str, options: dict[str, Any], count: int, first: str) -> None:
    graph, units = units_of(name, **options)

    assert (len(units), units.names[0]) == (count, first)
    assert units.widths(graph, (10,) * count).items() <= graph.widths().items()


def test_a_bottleneck_and_an_inception_block_are_one_unit_each() -> None:
    graph, units = units_of("resnet50")
    assert units.groups[1] == ("layer1.1.conv1", "layer1.1.conv2")
    graph, units = units_of("googlenet_cifar")
    widths = units.widths(graph, (1, 2, 3, 4, 5, 6, 7, 8, 9))
    assert widths["inception_a3.branch3x3.0"] == 9
    assert widths["inception_a3.branch5x5.0"] == 1
    assert widths["inception_b5.branch5x5.3"] == 115
    assert not {name for name in widths if name.endswith(("branch1x1.0", "branch5x5.6"))}


def test_transitions_of_densenet_follow_the_last_layer_of_their_block() -> None:
    graph, units = units_of("densenet40_cifar")
    code = [10] * 36
    code[11], code[23] = 5, 2
    widths = units.widths(graph, code)

    assert widths["trans1.conv1"] == 24 + 12 * 6
    assert widths["trans2.conv1"] == 24 + 12 * 6 + 12 * 2
    code[0] = 1
    assert units.widths(graph, code)["trans1.conv1"] == 24 + 12 * 6
    assert "conv1" not in widths
    graph, units = units_of("densenet40_cifar", depth=13, growth=7)
    assert units.widths(graph, (4,) * 9)["trans2.conv1"] == 14 + 3 * 2 + 3 * 2


def test_kept_layers_vanish_from_their_units() -> None:
    _, units = units_of("resnet20_cifar", keep=("layer1.*", "layer2.0.conv1"))
    assert units.names == ("layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2")
    _, units = units_of("resnet50", keep=("layer1.1.conv2", "layer4.*"))
    assert units.groups[1] == ("layer1.1.conv1",)
    assert len(units) == 13


@pytest.mark.parametrize(
    ("keep", "first", "second"),
    [
        (("trans1.conv1",), None, 168 + 12 * 6),
        (("trans2.conv1",), 24 + 12 * 6, None),
        (("dense1.11.conv1",), 168, 168 + 12 * 6),
        (("conv1",), 24 + 12 * 6, 24 + 24 * 6),
        (("dense1.3.conv1",), 24 + 12 * 6, 24 + 24 * 6),
        (("dense2.*",), 24 + 12 * 6, 24 + 12 * 6 + 144),
    ],
)
def test_transitions_of_densenet_beside_kept_layers(
    keep: tuple[str, ...], first: int | None, second: int | None
) -> None:
    graph, units = units_of("densenet40_cifar", keep=keep)
    widths = units.widths(graph, (5,) * len(units))

    assert (widths.get("trans1.conv1"), widths.get("trans2.conv1")) == (first, second)
    graph.cost(widths)


def test_networks_nobody_has_units_for_say_so() -> None:
    assert resolve("mobilenet_v2").units is None
    assert resolve("preresnet164_cifar").units is None
    assert {n.name for n in list_networks() if n.units is None} == {
        "mobilenet_cifar", "mobilenet_v1", "mobilenet_v2_metapruning", "preresnet164_cifar",
    }  # fmt: skip
