"""Masks over weights: exact counts, what goes first, and which channels are then gone."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fastprune as fp
from fastprune.errors import DivergenceError, GraphError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods._filters import filters_of
from fastprune.methods._weight_masks import (
    channels_alive,
    drop_smallest,
    live_weights,
    prunable_weights,
    prune_weights,
    remaining_after,
)
from fastprune.models import build
from fastprune.testing import Assembled, fill

IMAGE = torch.zeros(1, 3, 8, 8)


def resnet20() -> tuple[nn.Module, ChannelGraph]:
    model = fill(build("resnet20_cifar"))
    return model, fp.trace(model, torch.zeros(1, 3, 32, 32))


def weights_of(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in names}


def ones(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}


def count(masks: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def test_prunable_weights_are_of_the_published_number() -> None:
    model, graph = resnet20()
    names = prunable_weights(graph)
    assert names[0] == "layer1.0.conv1.weight"
    assert len(names) == 18
    assert sum(w.numel() for w in weights_of(model, names).values()) == 267_264
    assert prunable_weights(graph, first=True) == ("conv1.weight", *names)


def test_prunable_weights_follow_the_run_and_count_a_weight_once() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.b(net.stem(x))
        x = functional.conv2d(net.a(net.b(x)), net.bare)
        return net.up(net.normed(net.stem(x)))

    model = Assembled(
        run,
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 3, 1),
        stem=nn.Conv2d(3, 3, 1),
        up=nn.ConvTranspose2d(3, 2, 2),
        bare=nn.Parameter(torch.rand(3, 4, 1, 1)),
        normed=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
    )
    graph = fp.trace(model, IMAGE)
    assert prunable_weights(graph) == ("b.weight", "a.weight", "bare", "up.weight")


def test_a_network_without_convolutions_to_prune_is_refused() -> None:
    with pytest.raises(GraphError, match="no convolution but the first"):
        prunable_weights(fp.trace(nn.Conv2d(3, 4, 1), IMAGE))
    with pytest.raises(GraphError, match="no convolution whose"):
        prunable_weights(fp.trace(nn.Linear(8, 4), IMAGE), first=True)


def test_remaining_weights_are_exact() -> None:
    assert remaining_after(267_264, [0.2] * 20) == 3_081
    assert remaining_after(267_264, []) == 267_264
    # With the nearest floats, 1 - 0.9 is 0.0999… and 10 of 100 would be 9.
    assert remaining_after(100, [0.9]) == 10
    assert remaining_after(10**18 + 10, [0.3]) == (10**18 + 10) * 7 // 10
    assert remaining_after(10**9, [1e-05]) == 999_990_000
    assert remaining_after(7, [1.0]) == 0
    for total in (1, 997, 267_264):
        for rate, text in ((0.15, "17/20"), (0.3, "7/10"), (0.07, "93/100")):
            exact = total * Fraction(text) ** 9
            assert remaining_after(total, [rate] * 9) == exact.numerator // exact.denominator
    with pytest.raises(ValueError, match="rates"):
        remaining_after(10, [0.2, 1.1])


def slowly(
    weights: dict[str, Tensor], live: dict[str, Tensor], target: int
) -> dict[str, np.ndarray[Any, Any]]:
    """All live weights in a list, sorted."""
    rows = []
    for name, weight in weights.items():
        for index, value in enumerate(weight.flatten().tolist()):
            if live[name].flatten()[index]:
                rows.append((-abs(value), name, index))
    masks = {name: np.zeros(w.numel(), bool) for name, w in weights.items()}
    for _, name, index in sorted(rows)[:target]:
        masks[name][index] = True
    return {name: masks[name].reshape(w.shape) for name, w in weights.items()}


@pytest.mark.parametrize("levels", [0, 3, 1])
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.97, 1])
def test_exactly_the_largest_stay(levels: int, part: float) -> None:
    generator = torch.Generator().manual_seed(1)
    # Not in order of name: ties go by name, not by place.
    shapes = {"c": (4, 2, 3, 3), "a": (5, 4), "b": (7,)}
    weights = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    if levels:  # few magnitudes, many ties
        weights = {
            n: w.sign() * w.abs().mul(levels).ceil().clamp(max=levels) for n, w in weights.items()
        }
    live = {n: torch.rand(w.shape, generator=generator) < 0.8 for n, w in weights.items()}
    before = {n: m.clone() for n, m in live.items()}
    target = int(count(live) * part)
    masks = drop_smallest(weights, live, target)
    assert count(masks) == target
    for name, expected in slowly(weights, live, target).items():
        assert np.array_equal(masks[name].numpy(), expected), name
        assert torch.equal(live[name], before[name])
    targets = {name: int(int(live[name].sum()) * part) for name in weights}
    masks = drop_smallest(weights, live, targets, ranking="layer")
    for name, weight in weights.items():
        expected = slowly({name: weight}, live, targets[name])[name]
        assert np.array_equal(masks[name].numpy(), expected), name


def test_counts_are_exact_beyond_what_float32_can_count() -> None:
    size = 2**24 + 5
    weights = {"w": torch.ones(size)}
    masks = drop_smallest(weights, ones(weights), size - 1)
    assert int(masks["w"].sum()) == size - 1
    assert not masks["w"][-1]


def test_what_cannot_be_ranked_is_refused() -> None:
    weights = {"a": torch.ones(3), "b.weight": torch.tensor([1, float("nan"), float("inf")])}
    with pytest.raises(DivergenceError, match=r"b\.weight: 2 of 3"):
        drop_smallest(weights, ones(weights), 2)
    fine = {"a": torch.ones(3)}
    for target in (-1, 4):
        with pytest.raises(ValueError, match="target"):
            drop_smallest(fine, ones(fine), target)
    with pytest.raises(ValueError, match="'global'"):
        drop_smallest(fine, ones(fine), {"a": 2})
    with pytest.raises(ValueError, match="'layer'"):
        drop_smallest(fine, ones(fine), 2, ranking="layer")


def emptied(masks: dict[str, Tensor], **filters: list[int]) -> dict[str, Tensor]:
    """Masks without the filters of layers (``a__b`` for ``a.b``)."""
    masks = {name: mask.clone() for name, mask in masks.items()}
    for layer, gone in filters.items():
        masks[layer.replace("__", ".") + ".weight"][gone] = False
    return masks


def residual() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(net.stem(x))
        x = x + net.c(net.b(x))
        return net.head(x.mean((2, 3)))

    return Assembled(
        run,
        stem=nn.Conv2d(3, 6, 3),
        a=nn.Conv2d(6, 8, 1),
        b=nn.Conv2d(8, 5, 3, padding=1),
        c=nn.Conv2d(5, 8, 1),
        head=nn.Linear(8, 3),
    )


def test_a_channel_goes_when_every_filter_that_writes_to_it_is_empty() -> None:
    model = fill(residual())
    graph = fp.trace(model, IMAGE)
    assert graph.widths() == {"stem": 6, "a": 8, "b": 5}
    weights = weights_of(model, prunable_weights(graph))
    masks = emptied(ones(weights), a=[1, 2, 3], c=[2, 3, 4], b=[0])
    plan = channels_alive(masks, graph)
    assert plan.keep == {
        "stem": tuple(range(6)),
        "a": (0, 1, 4, 5, 6, 7),
        "b": (1, 2, 3, 4),
    }
    live = live_weights(plan, graph, weights)
    assert live["a.weight"].all((1, 2, 3)).tolist() == [True, True, False, False] + [True] * 4
    assert live["b.weight"][0].any() == torch.tensor(False)
    assert int(live["b.weight"].sum()) == 4 * 6 * 9
    assert int(live["c.weight"].sum()) == 6 * 4
    # What is gone stays gone, though its filters are full again.
    assert channels_alive(ones(weights), graph, before=plan).keep == plan.keep


def test_a_group_that_would_be_empty_keeps_one_channel() -> None:
    model = fill(residual())
    graph = fp.trace(model, IMAGE)
    weights = weights_of(model, prunable_weights(graph, first=True))
    masks = {name: torch.zeros_like(mask) for name, mask in ones(weights).items()}
    assert channels_alive(masks, graph).keep == {"stem": (0,), "a": (0,), "b": (0,)}
    values = {name: w.detach().clone() for name, w in weights.items()}
    values["a.weight"][5] += 9
    values["c.weight"][6] += 20
    values["b.weight"][3] -= 9
    plan = channels_alive(masks, graph, weights=values)
    assert plan.keep["a"] == (6,)
    assert plan.keep["b"] == (3,)
    before = PruningPlan({"a": (2, 4, 5), "b": (1, 2)}, graph.widths())
    plan = channels_alive(masks, graph, before=before, weights=values)
    assert plan.keep["a"] == (5,)
    assert channels_alive(masks, graph, before=before).keep["b"] == (1,)


def test_linear_layers_and_the_first_convolution_keep_what_they_write() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + net.a(x)
        return net.out(net.b(x).mean((2, 3)) + net.side(x.mean((2, 3))))

    model = Assembled(
        run,
        stem=nn.Conv2d(3, 6, 3),
        a=nn.Conv2d(6, 6, 1),
        b=nn.Conv2d(6, 4, 1),
        side=nn.Linear(6, 4),
        out=nn.Linear(4, 2),
    )
    graph = fp.trace(model, IMAGE)
    masks = ones(weights_of(model, prunable_weights(graph)))
    assert set(masks) == {"a.weight", "b.weight"}
    masks = emptied(masks, a=[0, 1], b=[2])
    assert channels_alive(masks, graph) == graph.full_plan()
    with_first = ones(weights_of(model, prunable_weights(graph, first=True)))
    masks = emptied(with_first, stem=[0], a=[0, 1], b=[2])
    assert channels_alive(masks, graph).keep["stem"] == (1, 2, 3, 4, 5)


def test_filters_of_grouped_and_transposed_convolutions_are_their_weights() -> None:
    """A filter's weights are those whose gradients one output channel has."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.d(net.c(net.b(net.a(x))))

    model = Assembled(
        run,
        a=nn.Conv2d(3, 12, 1),
        b=nn.Conv2d(12, 8, 3, groups=2),
        c=nn.ConvTranspose2d(8, 12, 2, groups=4),
        d=nn.ConvTranspose2d(12, 5, 2),
    )
    fill(model)
    x = torch.rand(1, 3, 8, 8)
    graph = fp.trace(model, x)
    names = prunable_weights(graph)
    for layer, (name, each) in zip("bcd", filters_of(graph, names).items(), strict=True):
        module = model.get_submodule(layer)
        made = x = model.get_submodule({"b": "a", "c": "b", "d": "c"}[layer])(x)
        made = module(made)
        weight = dict(model.named_parameters())[name]
        numbers = torch.arange(weight.numel()).view(weight.shape)
        rows = each.rows(numbers)
        assert len(rows) == made.shape[1] == len(each.channels)
        for channel, row in enumerate(rows):
            (gradient,) = torch.autograd.grad(made[:, channel].sum(), weight, retain_graph=True)
            assert torch.equal(gradient.flatten().nonzero().flatten(), row.sort().values)


def test_depthwise_and_concatenated_channels() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = torch.cat([x, net.point(net.depth(net.wide(x)))], 1)
        return net.head(net.last(x).flatten(1))

    model = Assembled(
        run,
        stem=nn.Conv2d(3, 4, 1),
        wide=nn.Conv2d(4, 10, 1),
        depth=nn.Conv2d(10, 10, 3, padding=1, groups=10),
        point=nn.Conv2d(10, 3, 1),
        last=nn.Conv2d(7, 6, 5),
        head=nn.Linear(6 * 16, 2),
    )
    graph = fp.trace(fill(model), IMAGE)
    masks = ones(weights_of(model, prunable_weights(graph)))
    masks = emptied(masks, wide=[1, 2], depth=[2, 3], point=[0], last=[5])
    plan = channels_alive(masks, graph)
    kept = (0, 1, 3, 4, 5, 6, 7, 8, 9)
    assert plan.keep == {
        "stem": (0, 1, 2, 3),
        "wide": kept,
        "point": (1, 2),
        "last": tuple(range(5)),
    }
    live = live_weights(plan, graph, masks)
    assert [int(mask.sum()) for mask in live.values()] == [9 * 4, 9 * 9, 2 * 9, 5 * 6 * 25]
    assert not live["last.weight"][:, 4].any()


def check_pruned(
    weights: dict[str, Tensor],
    live: dict[str, Tensor],
    target: int,
    graph: ChannelGraph,
    masks: dict[str, Tensor],
    plan: PruningPlan,
    before: PruningPlan | None,
) -> None:
    assert count(masks) == target
    useful = live_weights(plan, graph, weights)
    for name, mask in masks.items():
        assert not (mask & ~live[name]).any(), name
        assert not (mask & ~useful[name]).any(), f"{name}: of a channel that is gone"
    assert channels_alive(masks, graph, before=before, weights=weights).widths() == plan.widths()
    least = min(float(weights[n].abs()[m].min()) for n, m in masks.items() if m.any())
    for name, mask in masks.items():
        gone = weights[name].abs()[live[name] & useful[name] & ~mask]
        assert not len(gone) or float(gone.max()) <= least, name


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_twenty_rounds_reach_the_published_number_to_the_weight(spread: float) -> None:
    model, graph = resnet20()
    generator = torch.Generator().manual_seed(3)
    weights = {
        # Filters of very different scales: many channels go, and what reads them with them.
        name: w.detach() * torch.randn(len(w), 1, 1, 1, generator=generator).mul(spread).exp()
        for name, w in weights_of(model, prunable_weights(graph)).items()
    }
    live, plan = ones(weights), None
    for round_ in range(1, 21):
        target = remaining_after(267_264, [0.2] * round_)
        masks, after = prune_weights(weights, live, target, graph, before=plan)
        check_pruned(weights, live, target, graph, masks, after, plan)
        live, plan = masks, after
    assert count(live) == 3_081
    assert plan is not None
    dropped = graph.total - sum(plan.widths().values())
    assert dropped > 100
    assert plan.keep["conv1"] == tuple(range(16))  # the first convolution writes to it


def test_readers_of_a_channel_that_is_gone_go_first() -> None:
    model = fill(residual())
    graph = fp.trace(model, IMAGE)
    weights = {n: w.detach() for n, w in weights_of(model, prunable_weights(graph)).items()}
    weights["b.weight"][2] = 1e-6 * (1 + torch.arange(72.0).view(8, 3, 3))
    weights["c.weight"][:, 2] += 50
    total = sum(w.numel() for w in weights.values())
    masks, plan = prune_weights(weights, ones(weights), total - 80, graph)
    assert plan.keep["b"] == (0, 1, 3, 4)
    assert not masks["c.weight"][:, 2].any()
    # The 72 of the filter and the 8 that read it: nothing else had to go.
    assert count(masks) == total - 80
    assert int(masks["c.weight"].sum()) == 32
    assert masks["a.weight"].all()
    # All that read it would not have to go, and yet are of no use: fewer than asked for remain.
    masks, plan = prune_weights(weights, ones(weights), total - 72, graph)
    assert count(masks) == total - 80
    assert all(torch.equal(masks[n], live) for n, live in live_weights(plan, graph, masks).items())


def test_layers_by_themselves_and_a_state_after_an_empty_one() -> None:
    model = fill(residual())
    graph = fp.trace(model, IMAGE)
    weights = {n: w.detach() for n, w in weights_of(model, prunable_weights(graph)).items()}
    targets = {"a.weight": 48, "b.weight": 0, "c.weight": 20}
    masks, plan = prune_weights(weights, ones(weights), targets, graph, ranking="layer")
    best = int(weights["b.weight"].abs().double().sum((1, 2, 3)).argmax())
    assert plan.keep["b"] == (best,)
    # Of c's weights those stay that read it.
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "a.weight": 48,
        "b.weight": 0,
        "c.weight": 8,
    }
    again, after = prune_weights(weights, masks, targets, graph, ranking="layer", before=plan)
    assert after == plan
    assert all(torch.equal(again[name], masks[name]) for name in masks)


def test_names_that_are_no_convolutions_are_refused() -> None:
    graph = fp.trace(residual(), IMAGE)
    with pytest.raises(GraphError, match=r"head\.weight.*not the weight of a convolution"):
        channels_alive({"head.weight": torch.ones(3, 8, dtype=torch.bool)}, graph)
