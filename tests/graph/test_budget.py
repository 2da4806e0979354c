"""Budgets: met from below, within the floors, and refused in one line where they cannot be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastprune import criteria
from fastprune.errors import BudgetError, PlanError
from fastprune.graph import ChannelGraph, solve, trace
from fastprune.graph.budget import extremes, reachable
from fastprune.testing import fill

Scores = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet() -> tuple[ChannelGraph, Scores]:
    model = fill(torchvision.models.resnet18(weights=None)).eval()
    graph = trace(model, torch.zeros(1, 3, 64, 64))
    return graph, criteria.l1(model, graph)


@pytest.fixture(scope="module")
def small() -> tuple[ChannelGraph, Scores]:
    """Groups "0" of 8 and "2" of 12 channels."""
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 5, 3)]
    model = fill(nn.Sequential(*layers))
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    return graph, criteria.l1(model, graph)


@pytest.mark.parametrize("ranking", ["global", "layer", "isomorphic"])
@pytest.mark.parametrize("metric", ["macs", "params", "channels", "size_mb"])
@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.2])
def test_a_fraction_is_met_closely_from_below(
    resnet: tuple[ChannelGraph, Scores], ranking: Any, metric: str, fraction: float
) -> None:
    graph, scores = resnet

    plan = solve(graph, scores, {metric: fraction}, ranking=ranking)

    reached = getattr(graph.cost(plan), metric) / getattr(graph.cost(), metric)
    assert 0.995 * fraction <= reached <= fraction


def test_an_absolute_budget(resnet: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = resnet

    plan = solve(graph, scores, {"params": 3_000_000})

    assert 2_985_000 <= graph.cost(plan).params <= 3_000_000


def test_several_limits_hold_at_once(resnet: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = resnet
    limits = {"macs": 0.7, "params": 0.3, "channels": 0.8}

    cost, full = graph.cost(solve(graph, scores, limits)), graph.cost()

    reached = {m: getattr(cost, m) / getattr(full, m) for m in limits}
    assert all(reached[m] <= limits[m] for m in limits)
    assert reached["params"] > 0.29


@pytest.mark.parametrize("ranking", ["global", "layer", "isomorphic"])
def test_the_lowest_scores_go(resnet: tuple[ChannelGraph, Scores], ranking: Any) -> None:
    graph, scores = resnet
    plan = solve(graph, scores, {"macs": 0.5}, ranking=ranking)

    for name, kept in plan.keep.items():
        dropped = np.setdiff1d(np.arange(graph.group(name).channels), kept)
        if len(dropped):
            assert scores[name][list(kept)].min() >= scores[name][dropped].max()


def test_a_layer_ranking_drops_the_same_ratio_everywhere(
    resnet: tuple[ChannelGraph, Scores],
) -> None:
    graph, scores = resnet
    plan = solve(graph, scores, {"macs": 0.5}, ranking="layer")

    ratios = [len(kept) / graph.group(name).channels for name, kept in plan.keep.items()]
    assert max(ratios) - min(ratios) < 0.05


@pytest.mark.parametrize("multiple", [4, 8, 16])
def test_widths_are_multiples_or_whole(resnet: tuple[ChannelGraph, Scores], multiple: int) -> None:
    graph, scores = resnet
    plan = solve(graph, scores, {"macs": 0.5}, round_to=multiple)

    assert graph.cost(plan).macs <= 0.5 * graph.cost().macs
    assert all(width % multiple == 0 for width in plan.widths().values())


def test_odd_widths_stay_whole_where_no_multiple_fits(small: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = small

    plan = solve(graph, scores, {"macs": 0.8}, round_to=8)

    assert plan.widths() == {"0": 8, "2": 8}


@pytest.mark.parametrize(("floor", "least"), [(0.25, (2, 3)), (3, (3, 3)), (0, (1, 1))])
def test_no_group_falls_below_the_floor(
    small: tuple[ChannelGraph, Scores], floor: float, least: tuple[int, int]
) -> None:
    graph, scores = small
    lowest = {r.metric: r.lowest for r in reachable(graph, min_channels=floor)}

    plan = solve(graph, scores, {"macs": math.ceil(lowest["macs"])}, min_channels=floor)

    assert tuple(plan.widths().values()) == least
    with pytest.raises(BudgetError, match=r"macs can be from .* to"):
        solve(graph, scores, {"macs": lowest["macs"] - 1}, min_channels=floor)


def test_ratios_by_pattern(resnet: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = resnet

    plan = solve(graph, scores, ratios={"layer1.*": 0.25, "layer4.0.conv1": 0.5})

    widths = plan.widths()
    assert widths["layer1.0.conv1"] == widths["layer1.1.conv1"] == 48
    assert widths["layer4.0.conv1"] == 256
    assert widths["layer2.0.conv1"] == 128


def test_a_budget_beside_ratios_and_kept_groups(resnet: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = resnet

    plan = solve(graph, scores, {"macs": 0.6}, ratios={"layer4.*": 0.1}, keep=["layer1.*"])

    widths = plan.widths()
    assert widths["layer1.0.conv1"] == 64
    assert widths["layer4.0.conv1"] == 461
    assert 0.595 <= graph.cost(plan).macs / graph.cost().macs <= 0.6


def test_groups_without_scores_stay_whole(small: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = small

    assert solve(graph, {"0": scores["0"]}, {"macs": 0.7}).widths()["2"] == 12


@pytest.mark.parametrize(
    "as_given",
    [
        lambda v: v.numpy(),
        lambda v: v.tolist(),
        lambda v: v.clone().requires_grad_(),
        lambda v: v.double(),
        lambda v: -1 / v,
    ],
    ids=["numpy", "list", "gradient", "double", "negative"],
)
def test_scores_may_be_anything_with_the_same_order(
    small: tuple[ChannelGraph, Scores], as_given: Any
) -> None:
    graph, scores = small
    given = {name: as_given(values) for name, values in scores.items()}

    assert solve(graph, given, {"macs": 0.5}).keep == solve(graph, scores, {"macs": 0.5}).keep


def latency(graph: ChannelGraph) -> Any:
    """A millisecond for every thousand MACs, in steps of four channels."""

    def milliseconds(widths: Any) -> Any:
        return graph.cost_model.raw(np.ceil(widths / 4) * 4)[..., 0] / 1e3

    return milliseconds


def test_a_predicted_latency_is_a_limit_too(small: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = small
    time = latency(graph)
    plan = solve(graph, scores, {"latency_ms": 0.5}, latency=time)
    widths = plan.widths()

    assert 0.3 <= time(graph.width_vector(plan)) / time(graph.width_vector()) <= 0.5
    # What a step has room for comes back: it takes no time.
    assert all(width % 4 == 0 for width in widths.values())


def test_latency_holds_beside_other_limits(small: tuple[ChannelGraph, Scores]) -> None:
    graph, scores = small
    time = latency(graph)
    plan = solve(graph, scores, {"latency_ms": 0.9, "params": 0.3}, latency=time)

    assert graph.cost(plan).params <= 0.3 * graph.cost().params
    assert time(graph.width_vector(plan)) <= 0.9 * time(graph.width_vector())
    with pytest.raises(BudgetError, match=r"latency_ms: 0.001 .*cannot be reached; .* from .* to"):
        solve(graph, scores, {"latency_ms": 0.001}, latency=time)


def test_the_extremes_are_the_floors_and_half_way_to_them(
    small: tuple[ChannelGraph, Scores],
) -> None:
    graph, scores = small
    low, half = extremes(graph, scores, min_channels=2)

    assert low.widths() == {"0": 2, "2": 2}
    assert half.widths() == {"0": 5, "2": 7}
    best = np.argsort(scores["0"].numpy())[-2:]
    assert set(low.keep["0"]) == set(best.tolist())
    low, half = extremes(graph, {"0": scores["0"]}, round_to=4, ratios={"0": 0.5})
    assert low.widths() == half.widths() == {"0": 4, "2": 12}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (None, "scores: expected .*, got NoneType"),
        ([1], "scores: expected .*, got list"),
        ({}, "no group has a score"),
        ({"1": [1.0]}, "group '1': not a group"),
        ({"0": [1.0] * 7}, r"scores\['0'\]: expected shape \[8\], got \[7\]"),
        ({"0": torch.ones(8, 1)}, r"expected shape \[8\], got \[8, 1\]"),
        ({"0": ["a"] * 8}, r"scores\['0'\]: expected numbers"),
        ({"0": [NAN, *range(7)]}, r"scores\['0'\]: 1 scores are not finite"),
        ({"0": [INF, NAN, *range(6)]}, r"scores\['0'\]: 2 scores are not finite"),
        ({"0": [1] * 8, "2": [1] * 12}, "all of them are equal"),
    ],
)
def test_scores_that_rank_nothing_are_refused(
    small: tuple[ChannelGraph, Scores], scores: Any, says: str
) -> None:
    with pytest.raises(PlanError, match=says):
        solve(small[0], scores, {"macs": 0.5})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"budget": {"macs": 0.0001}},
            r"macs: 0.0001 .*cannot be reached; .* from .* to",
        ),
        ({"budget": {"macs": 0}}, "budget.macs: got 0"),
        ({"budget": {"macs": -1}}, "budget.macs: got -1"),
        ({"budget": {"macs": NAN}}, "budget.macs: got nan"),
        ({"budget": {"macs": 1.0}}, "met by the unpruned network"),
        ({"budget": {"macs": 1e12}}, "met by the unpruned network"),
        ({"budget": {"macs": "half"}}, "expected a number, got 'half'"),
        ({"budget": {"macs": True}}, "expected a number, got True"),
        ({"budget": {"mac": 0.5}}, "unknown metric; did you mean 'macs'"),
        ({"budget": {}}, "got no limit"),
        ({"budget": 0.5}, "expected limits such as"),
        ({"budget": None}, "got none"),
        ({"budget": {"latency_ms": 0.5}}, "needs a latency that can be predicted"),
        ({"round_to": 0}, "round_to: expected a whole number"),
        ({"round_to": 1.5}, "round_to: expected a whole number"),
        ({"round_to": True}, "round_to: expected a whole number"),
        ({"round_to": 64}, r"cannot be reached; .*1\.0000 to 1 of"),
        ({"min_channels": -1}, "min_channels: expected a number"),
        ({"min_channels": 1.5}, "min_channels: expected a number"),
        ({"min_channels": "x"}, "min_channels: expected a number"),
        ({"min_channels": INF}, "min_channels: expected a number"),
        ({"min_channels": 100}, "cannot be reached"),
        ({"ratios": {"0": 1}}, r"ratios\['0'\]: expected a pruning ratio"),
        ({"ratios": {"0": NAN}}, r"ratios\['0'\]: expected a pruning ratio"),
        ({"ratios": {"0": "a"}}, r"ratios\['0'\]: expected a pruning ratio"),
        ({"ratios": {"*": 0.5}}, "no channel is left to drop"),
        ({"keep": ["*"]}, "no channel is left to drop"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    small: tuple[ChannelGraph, Scores], options: dict[str, Any], says: str
) -> None:
    graph, scores = small
    with pytest.raises(BudgetError, match=says) as refusal:
        solve(graph, scores, **{"budget": {"macs": 0.5}, **options})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratios": {"1": 0.5}}, "ratios '1': matches no channel group"),
        ({"keep": ["9*"]}, r"keep '9\*': matches no channel group"),
        ({"ranking": "globl"}, "ranking: got 'globl'; did you mean 'global'"),
    ],
)
def test_names_that_match_nothing_are_refused(
    small: tuple[ChannelGraph, Scores], options: dict[str, Any], says: str
) -> None:
    graph, scores = small
    with pytest.raises(PlanError, match=says):
        solve(graph, scores, {"macs": 0.5}, **options)


def test_a_network_without_prunable_channels_says_why() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8))

    with pytest.raises(PlanError, match=r"no prunable channels .*network output"):
        solve(graph, {}, {"macs": 0.5})
