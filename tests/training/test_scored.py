"""Populations measured together, beside each candidate by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastprune.data import DataOptions, Splits, load
from fastprune.errors import TrainingError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, trace
from fastprune.methods._inherit import channel_order, plan_of
from fastprune.training import TrainingOptions, evaluate, fit, recalibrate_batch_norm
from fastprune.training.evaluator import Outcome, Request
from fastprune.training.scored import ScoredEvaluator
from fastprune.training.shared import inherited_subnets

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(1, 3, 32, 32)
WIDTHS = [(8, 8), (8, 5), (3, 8), (3, 5), (5, 5), (1, 1)]


class Setting:
    """A network, its graph, data, and plans of it."""

    def __init__(self, model: nn.Module, splits: Splits) -> None:
        self.model, self.splits = model.eval(), splits
        self.graph: ChannelGraph = trace(model, EXAMPLE)
        order = channel_order("l1", model, self.graph, seed=0)
        names = [group.name for group in self.graph.groups]
        self.requests = [
            Request(plan_of(self.graph, dict(zip(names, widths, strict=True)), order))
            for widths in WIDTHS
        ]

    def evaluator(self, **options: Any) -> ScoredEvaluator:
        given = {"device": CPU, "batches": 2, **options}
        subnets = partial(inherited_subnets, self.model, self.graph)
        return ScoredEvaluator(subnets, EXAMPLE, given.pop("splits", self.splits), **given)

    def outcomes(self, **options: Any) -> list[Outcome]:
        found = list(self.evaluator(**options).outcomes(self.requests))
        assert [request for request, _ in found] == self.requests
        return [outcome for _, outcome in found]

    def alone(self, plan: PruningPlan, batches: int = 2) -> nn.Module:
        small = apply_plan(self.model, self.graph, plan, allow_unchanged=True).eval()
        recalibrate_batch_norm(small, self.splits.train, batches, CPU)
        return small


@pytest.fixture
def setting(make_model: Callable[..., nn.Sequential], few_digits: Splits) -> Setting:
    return Setting(make_model(), few_digits)


@pytest.fixture(scope="module")
def many() -> Splits:
    options = DataOptions(batch_size=64, eval_batch_size=16, validation=400, train_limit=600)
    return load(options, seed=0)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("metric", ["top1", "top5"])
@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("memory_limit", [1.0, 4e9])
def test_outcomes_are_those_of_each_candidate_alone(
    setting: Setting, split: Any, metric: Any, batches: int, memory_limit: float
) -> None:
    found = setting.outcomes(
        split=split, metric=metric, batches=batches, memory_limit=memory_limit
    )
    pipeline = setting.splits.parts[split]
    for request, outcome in zip(setting.requests, found, strict=True):
        metrics = evaluate(setting.alone(request.plan, batches), pipeline, device=CPU)
        assert outcome.fitness == getattr(metrics, metric)
        assert outcome.images == metrics.images
        assert (outcome.epochs, outcome.stopped, outcome.diverged) == (0, False, False)
        assert outcome.seconds > 0


def test_what_was_saved_is_told(setting: Setting) -> None:
    evaluator = setting.evaluator()
    assert evaluator.report == {"steps_saved": 0.0, "images_saved": 0.0}
    list(evaluator.outcomes(setting.requests))
    once = evaluator.report
    list(evaluator.outcomes(setting.requests))

    assert 0 < once["steps_saved"] < 1
    assert once["images_saved"] == 0
    assert evaluator.report == once
    assert list(evaluator.outcomes([])) == []


def test_nothing_given_is_altered(setting: Setting) -> None:
    before = {name: tensor.clone() for name, tensor in setting.model.state_dict().items()}
    random = torch.get_rng_state()
    setting.outcomes()

    for name, tensor in setting.model.state_dict().items():
        assert torch.equal(before[name], tensor), name
    assert torch.equal(torch.get_rng_state(), random)


def planted(subnets: Any, hopeless: set[str]) -> Any:
    """Subnets of which some have a head that says the first class always."""

    def made(plans: Any) -> Any:
        for plan, subnet in zip(plans, subnets(plans), strict=True):
            if plan.digest not in hopeless:
                yield subnet
                continue
            weights = dict(subnet.weights)
            key, bias = weights["9.bias"]
            weights["9.bias"] = ((key, plan.digest), bias + 100 * torch.eye(10)[0])
            yield subnet._replace(weights=weights)

    return made


def test_racing_drops_the_hopeless_and_leaves_the_others_as_they_are(
    make_model: Callable[..., nn.Sequential], many: Splits, tmp_path: Path
) -> None:
    setting = Setting(make_model(), many)
    recipe = TrainingOptions(epochs=4, lr=0.1, precision="fp32", checkpoint_every=0)
    fit(setting.model, many, recipe, directory=tmp_path, seed=0, device=CPU)
    setting.model.eval()
    hopeless = {setting.requests[1].plan.digest, setting.requests[4].plan.digest}
    subnets = planted(partial(inherited_subnets, setting.model, setting.graph), hopeless)

    def run(racing: int | None) -> tuple[list[Outcome], dict[str, float]]:
        evaluator = ScoredEvaluator(subnets, EXAMPLE, many, device=CPU, batches=3, racing=racing)
        return [outcome for _, outcome in evaluator.outcomes(setting.requests)], evaluator.report

    whole, _ = run(None)
    found, report = run(3)
    best = sorted(range(len(whole)), key=lambda n: (-whole[n].fitness, n))[:3]
    dropped = [n for n, outcome in enumerate(found) if outcome.stopped]

    assert {1, 4} <= set(dropped)
    assert not set(dropped) & set(best)
    for number, outcome in enumerate(found):
        if outcome.stopped:
            assert outcome.images is not None
            assert 0 < outcome.images < 400
            assert outcome.fitness < min(whole[n].fitness for n in best)
        else:
            assert outcome.images == 400
            assert outcome.fitness == whole[number].fitness
    assert 0 < report["images_saved"] < 1
    again, _ = run(3)
    assert [replace(o, seconds=0) for o in again] == [replace(o, seconds=0) for o in found]
    assert not any(outcome.stopped for outcome in run(len(whole))[0])


def test_numbers_that_are_not_finite_are_told(setting: Setting) -> None:
    with torch.no_grad():
        # Only of the channels that the widest keeps.
        order = channel_order("l1", setting.model, setting.graph, seed=0)
        weight = setting.model.get_submodule("0").weight
        lowest = int(order["0"].argmin())
        assert isinstance(weight, torch.Tensor)
        weight[lowest] = float("inf")
    found = setting.outcomes(batches=0)

    for widths, outcome in zip(WIDTHS, found, strict=True):
        whole = widths[0] == 8
        assert outcome.diverged is whole
        assert not whole or outcome.fitness == 0.0


def test_what_cannot_be_is_refused(setting: Setting) -> None:
    bare = replace(setting.splits, validation=None)

    with pytest.raises(TrainingError, match=r"^method\.fitness_split: looks at validation im"):
        setting.evaluator(splits=bare)
    assert setting.evaluator(splits=bare, split="test")
    with pytest.raises(ValueError, match=r"^racing: expected a count from 1 on, got 0$"):
        setting.evaluator(racing=0)
