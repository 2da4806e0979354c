"""The closed-form cost: known networks, and widths against counting what was really pruned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fastprune.errors import PlanError
from fastprune.graph import ChannelGraph, apply_plan, trace
from fastprune.records import Cost
from fastprune.testing import random_plan


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 3, stride=2, groups=8),
        nn.ConvTranspose2d(16, 6, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return trace(small(), torch.zeros(1, 3, 8, 8))


@pytest.fixture(scope="module")
def resnet50() -> tuple[nn.Module, ChannelGraph]:
    with torch.device("meta"):
        model = torchvision.models.resnet50(weights=None)
    return model, trace(model, torch.zeros(1, 3, 224, 224, device="meta"))


def test_resnet50(resnet50: tuple[nn.Module, ChannelGraph]) -> None:
    cost = resnet50[1].cost()

    assert (cost.macs, cost.params, cost.channels) == (4_089_184_256, 25_557_032, 26_560)
    assert cost.size_mb == pytest.approx(102.44, abs=0.01)


def test_every_kind_of_layer(graph: ChannelGraph) -> None:
    macs = 64 * 8 * 27 + 9 * 16 * 9 + 9 * 16 * 6 * 4 + 6 * 5
    params = 8 * 27 + 8 + 16 + 16 * 9 + 16 + 16 * 6 * 4 + 6 + 35

    cost = graph.cost()

    assert (cost.macs, cost.params, cost.channels) == (macs, params, 8 + 16 + 6)
    # Running mean and variance, and the batch counter of eight bytes.
    assert cost.size_mb == pytest.approx((4 * (params + 16) + 8) / 1e6)


def test_widths_and_plans_agree(graph: ChannelGraph) -> None:
    plan = random_plan(graph, 0)

    assert graph.cost(plan) == graph.cost(plan.widths())
    assert graph.cost({}) == graph.cost() == graph.cost(graph.full_plan())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "googlenet"])
def test_the_closed_form_counts_what_is_left(name: str) -> None:
    with torch.device("meta"):
        options = {"init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    example = torch.zeros(1, 3, 64, 64, device="meta")
    graph = trace(model, example)
    for seed in range(3):
        plan = random_plan(graph, seed, low=0.1, high=0.8)
        pruned = apply_plan(model, graph, plan)

        assert trace(pruned, example).cost() == graph.cost(plan)
        assert sum(p.numel() for p in pruned.parameters()) == graph.cost(plan).params


def test_many_candidates_at_once(resnet50: tuple[nn.Module, ChannelGraph]) -> None:
    graph = resnet50[1]
    random = np.random.default_rng(0)
    sizes = [g.channels for g in graph.groups]
    widths = np.stack([random.integers(1, np.add(sizes, 1)) for _ in range(20)])

    costs = graph.costs(widths)

    names = [g.name for g in graph.groups]
    for row, macs, params, channels, size in zip(widths, *costs, strict=True):
        one = graph.cost(dict(zip(names, row.tolist(), strict=True)))
        assert one == Cost(int(macs), int(params), int(channels), float(size))


@pytest.mark.parametrize(
    "widths",
    [[[1, 2, 3]], [3, 4], [[0, 1]], [[9, 1]], [[1.0, 1.0]]],
    ids=["columns", "one axis", "none left", "too wide", "fractions"],
)
def test_candidates_that_are_no_widths_are_refused(graph: ChannelGraph, widths: Any) -> None:
    with pytest.raises(ValueError, match="widths"):
        graph.costs(widths)


@pytest.mark.parametrize("width", [0, 9, -1, 1.0, True, "3", None])
def test_a_width_out_of_range_is_refused(graph: ChannelGraph, width: Any) -> None:
    with pytest.raises(PlanError, match=r"widths\['0'\].*from 1 to 8"):
        graph.cost({"0": width})


def test_an_unknown_group_names_the_nearest(graph: ChannelGraph) -> None:
    with pytest.raises(PlanError, match="group '1': not a group"):
        graph.cost({"1": 2})
