"""Inheritance: which channels stay under each rule, and that all of a channel is inherited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastprune as fp
from fastprune.errors import FastpruneError, PlanError
from fastprune.graph import ChannelGraph, PruningPlan, Units, apply_plan, units_by_group
from fastprune.methods._inherit import channel_order, check_rule, plan_of, rules
from fastprune.models import resolve
from fastprune.testing import check_pruning, fill

# Name and size of the images; ImageNet's networks run on small ones.
SMALL = {
    "vgg16_cifar_abc": 32,
    "resnet56_cifar": 16,
    "resnet110_cifar": 16,
    "googlenet_cifar": 8,
    "densenet40_cifar": 16,
    "resnet18": 32,
    "resnet34": 32,
    "resnet50": 32,
}
LARGE = ("resnet101", "resnet152")
RULES = ("first", "random", "l1")


def network(name: str, size: int, **options: Any) -> tuple[nn.Module, ChannelGraph, Units]:
    """A network of weights that are all different, its graph and its units."""
    found = resolve(name)
    assert found.units is not None
    with torch.device("meta"):
        model = found.build(**options).eval()
    model = fill(model.to_empty(device="cpu"))
    graph = fp.trace(model, torch.zeros(1, 3, size, size))
    return model, graph, found.units(graph)


def random_code(units: Units, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 11, len(units)).tolist()


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_a_code_of_all_tens_gives_the_network_itself(name: str) -> None:
    size = SMALL.get(name, 32)
    model, graph, units = network(name, size)
    widths = units.widths(graph, (10,) * len(units))
    scores = {rule: channel_order(rule, model, graph, seed=3) for rule in RULES}
    if name == "vgg16_cifar_abc":
        images, labels = torch.randn(2, 3, size, size), torch.tensor([0, 1])
        scores["taylor"] = channel_order(
            "taylor", model, graph, seed=3, batches=[(images, labels)]
        )
    plans = {rule: plan_of(graph, widths, found) for rule, found in scores.items()}

    assert {plan.digest for plan in plans.values()} == {graph.full_plan().digest}
    small = apply_plan(model, graph, plans["l1"], allow_unchanged=True)
    assert same_state(small, model)
    if name not in LARGE:
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            assert torch.equal(small(x), model(x))


@pytest.mark.parametrize("name", ["vgg16_cifar_abc", "resnet56_cifar", "densenet40_cifar"])
@pytest.mark.parametrize("rule", RULES)
def test_a_random_code_computes_what_the_masked_network_does(name: str, rule: str) -> None:
    model, graph, units = network(name, SMALL[name])
    model.double()
    graph = fp.trace(model, torch.zeros(1, 3, SMALL[name], SMALL[name], dtype=torch.float64))
    code = random_code(units, 1)
    scores = channel_order(rule, model, graph, seed=1)
    plan = plan_of(graph, units.widths(graph, code), scores)
    small = check_pruning(
        model,
        graph,
        plan,
        [torch.zeros(1, 3, SMALL[name], SMALL[name], dtype=torch.float64)],
        batches=(2,),
    )

    widths = units.widths(graph, code)
    for group, width in widths.items():
        assert small.get_submodule(group).weight.shape[0] == width


def test_the_blocks_of_googlenet_compute_what_masked_ones_do() -> None:
    model, graph, units = network("googlenet_cifar", 8)
    model.double()
    example = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    graph = fp.trace(model, example)
    widths = units.widths(graph, random_code(units, 2))
    plan = plan_of(graph, widths, channel_order("l1", model, graph, seed=0))

    check_pruning(model, graph, plan, [example], batches=(2,))


def vectors(norm: nn.Module) -> list[Tensor]:
    assert isinstance(norm, nn.BatchNorm2d)
    return [norm.weight, norm.bias, norm.running_mean, norm.running_var]  # type: ignore[list-item]


@pytest.mark.parametrize("rule", RULES)
def test_a_vgg_inherits_all_of_its_kept_channels(rule: str) -> None:
    model, graph, units = network("vgg16_cifar_abc", 32)
    widths = units.widths(graph, random_code(units, 4))
    plan = plan_of(graph, widths, channel_order(rule, model, graph, seed=4))
    small = apply_plan(model, graph, plan)
    kept = torch.arange(3)

    for name, width in widths.items():
        into, kept = kept, torch.tensor(plan.keep[name])
        at = int(name.removeprefix("features."))
        old, new = model.features[at], small.features[at]
        assert len(kept) == width
        assert torch.equal(new.weight, old.weight[kept][:, into])
        assert torch.equal(new.bias, old.bias[kept])
        for a, b in zip(
            vectors(small.features[at + 1]), vectors(model.features[at + 1]), strict=True
        ):
            assert torch.equal(a, b[kept])
    assert torch.equal(small.classifier.weight, model.classifier.weight[:, kept])
    assert torch.equal(small.classifier.bias, model.classifier.bias)


@pytest.mark.parametrize("name", ["resnet56_cifar", "resnet50"])
def test_a_resnet_inherits_all_of_its_kept_channels(name: str) -> None:
    model, graph, units = network(name, SMALL[name])
    widths = units.widths(graph, random_code(units, 5))
    plan = plan_of(graph, widths, channel_order("l1", model, graph, seed=0))
    small = apply_plan(model, graph, plan)
    convolutions = 3 if name == "resnet50" else 2

    for unit in units.names:
        old, new = model.get_submodule(unit), small.get_submodule(unit)
        into: Tensor | slice = slice(None)
        for i in range(1, convolutions + 1):
            kept = torch.tensor(plan.keep[f"{unit}.conv{i}"]) if i < convolutions else slice(None)
            before, after = getattr(old, f"conv{i}").weight, getattr(new, f"conv{i}").weight
            assert torch.equal(after, before[kept][:, into])
            norms = zip(
                vectors(getattr(new, f"bn{i}")), vectors(getattr(old, f"bn{i}")), strict=True
            )
            assert all(torch.equal(a, b[kept]) for a, b in norms)
            into = kept
    head = "fc" if name == "resnet50" else "linear"
    assert torch.equal(getattr(small, head).weight, getattr(model, head).weight)


def test_concatenated_channels_of_densenet_are_read_where_they_are() -> None:
    model, graph, units = network("densenet40_cifar", 16, depth=10, growth=5)
    plan = plan_of(
        graph, units.widths(graph, (4, 7, 5, 5, 3, 8)), channel_order("l1", model, graph, seed=0)
    )
    small = apply_plan(model, graph, plan)
    into = [*range(10)]
    into += [10 + i for i in plan.keep["dense1.0.conv1"]]
    into += [15 + i for i in plan.keep["dense1.1.conv1"]]
    kept = torch.tensor(plan.keep["trans1.conv1"])

    assert len(kept) == 10 + 2 * 3
    weight = model.trans1.conv1.weight[kept][:, torch.tensor(into)]
    assert torch.equal(small.trans1.conv1.weight, weight)
    for a, b in zip(vectors(small.trans1.bn1), vectors(model.trans1.bn1), strict=True):
        assert torch.equal(a, b[torch.tensor(into)])


def test_rules_rank_as_they_say() -> None:
    model, graph, _ = network("resnet20_cifar", 16, depth=8)
    widths = {"layer1.0.conv1": 3}
    name = "layer1.0.conv1"

    assert plan_of(graph, widths, channel_order("first", model, graph, seed=0)).keep[name] == (
        0, 1, 2,
    )  # fmt: skip
    l1 = fp.criteria.l1(model, graph)[name]
    best = tuple(sorted(l1.argsort(descending=True)[:3].tolist()))
    assert plan_of(graph, widths, channel_order("l1", model, graph, seed=0)).keep[name] == best
    orders = [channel_order("random", model, graph, seed=seed)[name] for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_wider_codes_keep_what_narrower_ones_do() -> None:
    model, graph, units = network("resnet20_cifar", 16, depth=8)
    scores = channel_order("random", model, graph, seed=7)
    before: dict[str, Any] = {}
    for k in range(1, 11):
        plan = plan_of(graph, units.widths(graph, (k,) * len(units)), scores)
        for name, kept in before.items():
            assert set(kept) <= set(plan.keep[name])
        before = {name: plan.keep[name] for unit in units.groups for name in unit}


def test_of_equal_scores_the_lower_index_stays() -> None:
    _, graph, _ = network("resnet20_cifar", 16, depth=8)
    scores = torch.ones(16)
    scores[[2, 9]] = 2

    plan = plan_of(graph, {"layer1.0.conv1": 5}, {"layer1.0.conv1": scores})

    assert plan.keep["layer1.0.conv1"] == (0, 1, 2, 3, 9)
    assert plan.keep["layer2.0.conv1"] == tuple(range(32))
    assert plan.channels == graph.widths()


def test_data_comes_to_the_criteria_that_look_at_it() -> None:
    model, graph, units = network("resnet20_cifar", 16, depth=8)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.randn(4, 3, 16, 16), torch.arange(4)

    scores = channel_order("taylor", model, graph, seed=0, batches=batches())
    plan = plan_of(graph, units.widths(graph, (5, 5, 5)), scores)
    assert isinstance(plan, PruningPlan)
    with pytest.raises(FastpruneError, match="looks at data"):
        channel_order("taylor", model, graph, seed=0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("frist", r"inherit: unknown rule 'frist'; did you mean 'first'\?"),
        ("l11", r"inherit: unknown rule 'l11'; did you mean 'l1'"),
        ("default", r"inherit: .* 'default' is called 'first' here"),
        ("random_pretrain", r"inherit: .* 'random_pretrain' is called 'random' here"),
        ("l1_pretrain", r"inherit: .* 'l1_pretrain' is called 'l1' here"),
    ],
)
def test_unknown_rules_name_the_known(rule: str, message: str) -> None:
    with pytest.raises(FastpruneError, match=message):
        check_rule(rule)


def test_every_criterion_is_a_rule() -> None:
    assert {"first", *fp.criteria.registry.names()} == set(rules())
    for rule in rules():
        check_rule(rule)


@pytest.mark.parametrize(
    ("widths", "scores", "message"),
    [
        ({"0": 2}, {}, r"group '0' is to be narrowed and has no scores .*such as l1"),
        ({"0": 2}, {"0": torch.ones(3)}, r"scores\['0'\]: expected shape \[4\], got \[3\]"),
        ({"0": 2}, {"0": torch.full((4,), torch.nan)}, r"scores\['0'\]: 4 scores are not finite"),
        ({"0": 5}, {"0": torch.ones(4)}, r"widths\['0'\]: got 5; expected .* from 1 to 4"),
        ({"0": 0}, {"0": torch.ones(4)}, r"widths\['0'\]: got 0; expected .* from 1 to 4"),
        ({"x": 1}, {}, r"group 'x': not a group of this network"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(
    widths: dict[str, int], scores: dict[str, Tensor], message: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    graph = fp.trace(model, torch.zeros(1, 3, 4, 4))
    with pytest.raises(PlanError, match=message):
        plan_of(graph, widths, scores)


def test_a_criterion_without_scores_for_a_group_may_leave_it_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
    )
    graph = fp.trace(model, torch.zeros(1, 3, 4, 4))
    scores = channel_order("batch_norm_scale", model, graph, seed=0)
    units = units_by_group(graph)

    assert plan_of(graph, units.widths(graph, (5, 10)), scores).widths() == {"0": 2, "2": 4}
    with pytest.raises(PlanError, match="group '2' is to be narrowed"):
        plan_of(graph, units.widths(graph, (10, 5)), scores)
