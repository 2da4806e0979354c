"""Refill: exactly as many channels as the masks are worth, the best of each coupled group."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from odd_networks import registered
from torch import Tensor, nn

import fastprune as fp
from fastprune.errors import TrainingError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods._filter_scores import FILTER_CRITERIA, filter_scores
from fastprune.methods._refill import refill
from fastprune.methods._weight_masks import live_weights, prunable_weights
from fastprune.testing import Assembled, check_pruning, fill

RATES = {0.0: Fraction(0), 0.3: Fraction(3, 10), 0.5: Fraction(1, 2), 1.0: Fraction(1)}


def chain(*widths: int) -> tuple[nn.Module, ChannelGraph]:
    """Convolutions one after the other: a network that gives a map."""

    def run(net: Any, x: Tensor) -> Tensor:
        for conv in net.convs:
            x = conv(x)
        return x

    sizes = (3, *widths)
    convs = [nn.Conv2d(i, o, 1) for i, o in pairwise(sizes)]
    model = fill(Assembled(run, convs=nn.ModuleList(convs)))
    return model, fp.trace(model, torch.zeros(1, 3, 4, 4))


def slowly(
    masks: dict[str, Tensor],
    scores: dict[str, Tensor],
    graph: ChannelGraph,
    plan: PruningPlan,
    rate: Fraction,
) -> dict[str, tuple[int, ...]]:
    """Kept channels by loops over groups, slots and positions; not for transposed convolutions."""
    live = live_weights(plan, graph, masks)
    keep = {}
    for group in graph.groups:
        here = plan.keep.get(group.name, tuple(range(group.channels)))
        kept = full = 0
        joined = dict.fromkeys(here, 0.0)
        writers = []
        for slot in graph.group_slots(group):
            for name in slot.parameters:
                if slot.role not in ("out", "group") or name not in masks:
                    continue
                values = dict.fromkeys(here, 0.0)
                for position, channel in zip(slot.positions, slot.channels, strict=True):
                    if channel not in values:
                        continue
                    kept += int((masks[name][position] & live[name][position]).sum())
                    full += int(live[name][position].sum())
                    values[channel] += float(scores[name][position])
                writers.append(values)
        for values in writers:
            mean = np.mean([abs(v) for v in values.values()]) if len(writers) > 1 else 1
            for channel, value in values.items():
                joined[channel] += value / mean if mean else 0
        if not writers or group.kind == "selected":
            keep[group.name] = here
            continue
        worth = Fraction(len(here) * kept, full)
        wanted = max(1, int(worth + (len(here) - worth) * rate))
        best = sorted(here, key=lambda channel: (-joined[channel], channel))
        keep[group.name] = tuple(sorted(int(c) for c in best[:wanted]))
    return keep


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        *(("resnet20_cifar", rate) for rate in RATES),
        ("mobilenet_v1", 0.0),
        ("mobilenet_v2", 0.3),
        ("densenet40_cifar", 0.5),
    ],
)
def test_coupled_groups_against_loops(name: str, rate: float) -> None:
    model, example = registered(name)
    graph = fp.trace(model, example)
    names = prunable_weights(graph)
    generator = torch.Generator().manual_seed(6)
    masks, scores = {}, {}
    for number, weight in enumerate(names):
        shape = graph.tensors[weight].shape
        part = torch.rand(shape[0], 1, 1, 1, generator=generator)
        masks[weight] = torch.rand(shape, generator=generator) < part
        # Few values in some layers: ties; signs in others, as estimates of curvature have.
        drawn = torch.randn(shape[0], generator=generator)
        scores[weight] = drawn.abs().mul(2).round() if number % 3 else drawn
    plan = graph.full_plan()
    for _ in range(2):  # and once more from what is left
        after = refill(masks, scores, graph, plan, fillback_rate=rate)
        assert after.keep == slowly(masks, scores, graph, plan, RATES[rate])
        if rate == 1:
            assert after == plan
        else:
            assert sum(after.widths().values()) < sum(plan.widths().values())
        plan = after
    if rate < 1:
        check_pruning(model, graph, plan, [example], batches=(1,))


@pytest.mark.parametrize("criterion", FILTER_CRITERIA)
@pytest.mark.parametrize("tied", [False, True])
def test_exactly_as_many_filters_for_every_criterion(criterion: str, tied: bool) -> None:
    model, graph = chain(4, 10, 1, 3)
    if tied:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
    names = prunable_weights(graph)
    assert names[0] == "convs.1.weight"
    flat = torch.zeros(40, dtype=torch.bool)
    batches = [(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))]
    for kept in range(41):
        flat[:kept] = True
        masks = {
            "convs.1.weight": flat.view(4, 10).T.reshape(10, 4, 1, 1).clone(),
            "convs.2.weight": torch.zeros(1, 10, 1, 1, dtype=torch.bool),
            "convs.3.weight": torch.zeros(3, 1, 1, 1, dtype=torch.bool),
        }
        if kept % 8 == 0:
            scores = filter_scores(criterion, model, graph, names, masks=masks, batches=batches)
        if criterion in ("random", "hessian") and tied:  # both draw, and so break ties
            scores = {name: torch.ones_like(s) for name, s in scores.items()}
        for rate, exact in RATES.items():
            plan = refill(masks, scores, graph, fillback_rate=rate)
            worth = Fraction(kept, 4)
            wanted = max(1, int(worth + (10 - worth) * exact))
            assert len(plan.keep["convs.1"]) == wanted
            if tied and criterion != "remain":
                assert plan.keep["convs.1"] == tuple(range(wanted))
            order = sorted(range(10), key=lambda j: (-float(scores["convs.1.weight"][j]), j))
            assert plan.keep["convs.1"] == tuple(sorted(order[:wanted]))
            assert plan.keep["convs.0"] == (0, 1, 2, 3)


def test_a_whole_group_and_one_filter() -> None:
    _, graph = chain(4, 2, 3)
    masks = {"convs.1.weight": torch.ones(2, 4, 1, 1, dtype=torch.bool)}
    scores = {"convs.1.weight": torch.tensor([1.0, 2.0])}
    assert refill(masks, scores, graph) == graph.full_plan()
    one = PruningPlan({"convs.1": (0,)}, graph.widths())
    assert refill(masks, scores, graph, one).keep["convs.1"] == (0,)
    masks["convs.1.weight"][:] = False
    assert refill(masks, scores, graph).keep["convs.1"] == (1,)
    assert refill(masks, scores, graph, one).keep["convs.1"] == (0,)
    assert refill(masks, scores, graph, fillback_rate=1).keep["convs.1"] == (0, 1)


def test_fractions_are_exact() -> None:
    """10 filters of 3 weights, 9 kept: 3 channels' worth, 2.999… in floats of 10·(9/30)."""
    _, graph = chain(3, 10, 3)
    mask = torch.zeros(10, 3, 1, 1, dtype=torch.bool)
    mask[:3] = True
    scores = {"convs.1.weight": torch.arange(10.0)}
    assert refill({"convs.1.weight": mask}, scores, graph).keep["convs.1"] == (7, 8, 9)
    # 3 + 7·0.3 = 5.1, and 1 + 9·0.7 = 7.3; 3 + 7·(1/7 as a decimal) stays below 4.
    plan = refill({"convs.1.weight": mask}, scores, graph, fillback_rate=0.3)
    assert len(plan.keep["convs.1"]) == 5
    plan = refill({"convs.1.weight": mask}, scores, graph, fillback_rate=0.14285714)
    assert len(plan.keep["convs.1"]) == 3


def test_scales_of_coupled_convolutions_do_not_decide() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(net.stem(x))
        return net.head(x + net.b(x))

    model = Assembled(
        run,
        stem=nn.Conv2d(3, 4, 1),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 1),
        head=nn.Conv2d(4, 2, 1),
    )
    graph = fp.trace(model, torch.zeros(1, 3, 4, 4))
    half = torch.arange(16).view(4, 4, 1, 1) % 2 == 0
    masks = {"a.weight": half, "b.weight": half}
    small, large = torch.tensor([9.0, 1, 1, 5]), 1e6 * torch.tensor([1.0, 1.2, 1.1, 1])
    for one, other in ((small, large), (large, small)):
        plan = refill(masks, {"a.weight": one, "b.weight": other}, graph)
        assert plan.keep["a"] == (0, 3)
    # Half of one and all of the other: three quarters of the group.
    masks = {"a.weight": half, "b.weight": torch.ones_like(half)}
    plan = refill(masks, {"a.weight": small, "b.weight": small}, graph)
    assert plan.keep["a"] == (0, 1, 3)


def test_weights_of_dead_inputs_do_not_count() -> None:
    _, graph = chain(4, 6, 8, 3)
    plan = PruningPlan({"convs.1": (0, 5)}, graph.widths())
    masks = {"convs.2.weight": torch.zeros(8, 6, 1, 1, dtype=torch.bool)}
    masks["convs.2.weight"][:, 1:5] = True  # all of channels that are gone
    masks["convs.2.weight"][:6, 0] = True
    after = refill(masks, {"convs.2.weight": torch.arange(8.0)}, graph, plan)
    assert after.keep["convs.2"] == (5, 6, 7)  # 8·6/16
    assert after.keep["convs.1"] == (0, 5)


def test_what_cannot_be_refilled_is_refused() -> None:
    _, graph = chain(4, 2, 3)
    masks = {"convs.1.weight": torch.ones(2, 4, 1, 1, dtype=torch.bool)}
    scores = {"convs.1.weight": torch.tensor([1.0, 2.0])}
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match="fillback_rate"):
            refill(masks, scores, graph, fillback_rate=rate)
    with pytest.raises(ValueError, match=r"convs\.1\.weight.*expected shape \[2\], got none"):
        refill(masks, {}, graph)
    with pytest.raises(ValueError, match=r"expected shape \[2\], got \[3\]"):
        refill(masks, {"convs.1.weight": torch.ones(3)}, graph)
    with pytest.raises(TrainingError, match=r"convs\.1\.weight.*1 of 2 are not finite"):
        refill(masks, {"convs.1.weight": torch.tensor([1.0, float("nan")])}, graph)
