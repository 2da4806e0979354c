"""Candidates to outcomes, beside the same done by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastprune.data import Splits
from fastprune.errors import TrainingError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, trace
from fastprune.methods._inherit import channel_order, plan_of
from fastprune.training import TrainingOptions, evaluate, fit
from fastprune.training import evaluator as module
from fastprune.training.evaluator import FitnessOptions, Request, TrainedEvaluator

CPU = torch.device("cpu")
RECIPE = TrainingOptions(
    epochs=2, lr=0.05, precision="fp32", schedule="constant", checkpoint_every=0
)


class Setting:
    """A network, its graph, data, and plans of it."""

    def __init__(self, model: nn.Module, splits: Splits) -> None:
        self.model, self.splits = model, splits
        self.graph: ChannelGraph = trace(model, torch.zeros(1, 3, 32, 32))

    def plan(self, *widths: int) -> PruningPlan:
        names = [group.name for group in self.graph.groups]
        order = channel_order("l1", self.model, self.graph, seed=0)
        return plan_of(self.graph, dict(zip(names, widths, strict=True)), order)

    def evaluator(
        self, folder: Path, options: FitnessOptions | None = None, **changes: Any
    ) -> TrainedEvaluator:
        given = {"directory": folder, "seed": 3, "device": CPU, **changes}
        return TrainedEvaluator(
            self.model, self.graph, self.splits, options or FitnessOptions(RECIPE), **given
        )


@pytest.fixture
def setting(make_model: Callable[..., nn.Sequential], few_digits: Splits) -> Setting:
    return Setting(make_model(), few_digits)


def by_hand(
    setting: Setting, plan: PruningPlan, folder: Path, recipe: TrainingOptions = RECIPE
) -> tuple[nn.Module, Any]:
    small = apply_plan(setting.model, setting.graph, plan, allow_unchanged=True)
    fit(small, setting.splits, recipe, directory=folder, seed=3, device=CPU)
    split = setting.splits.validation
    assert split is not None
    measured = evaluate(
        small, split, device=CPU, precision=recipe.precision, channels_last=recipe.channels_last
    )
    return small, measured


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_an_outcome_is_what_fit_and_evaluate_give(
    setting: Setting, tmp_path: Path, metric: Any
) -> None:
    before = {name: tensor.clone() for name, tensor in setting.model.state_dict().items()}
    random = torch.get_rng_state()
    evaluator = setting.evaluator(tmp_path / "a", FitnessOptions(RECIPE, metric=metric))
    requests = [Request(setting.plan(8, 5)), Request(setting.plan(3, 8))]
    found = list(evaluator.outcomes(requests))

    assert [request for request, _ in found] == requests
    for request, outcome in found:
        small, metrics = by_hand(setting, request.plan, tmp_path / request.plan.digest)
        assert outcome.fitness == getattr(metrics, metric)
        assert (outcome.epochs, outcome.stopped, outcome.diverged) == (2, False, False)
        assert outcome.seconds > 0
        trained = evaluator.trained(request.plan)
        for name, tensor in small.state_dict().items():
            assert torch.equal(trained[name], tensor), name
    for name, tensor in setting.model.state_dict().items():
        assert torch.equal(before[name], tensor), name
    assert torch.equal(torch.get_rng_state(), random)


def test_fitness_can_be_measured_on_the_test_images(setting: Setting, tmp_path: Path) -> None:
    options = FitnessOptions(RECIPE, split="test")
    plan = setting.plan(4, 4)
    outcome = setting.evaluator(tmp_path / "a", options).outcome(Request(plan))
    small, _ = by_hand(setting, plan, tmp_path / "b")

    assert outcome.fitness == evaluate(small, setting.splits.test, device=CPU).top1


def test_candidates_do_not_depend_on_who_came_before(setting: Setting, tmp_path: Path) -> None:
    first, second = Request(setting.plan(8, 5)), Request(setting.plan(3, 8))
    both, alone = setting.evaluator(tmp_path / "a"), setting.evaluator(tmp_path / "b")
    both.outcome(first)
    torch.manual_seed(99)

    expected = alone.outcome(second)
    assert replace(both.outcome(second), seconds=0) == replace(expected, seconds=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_interrupted_in_the_middle_it_ends_in_the_same_weights(
    setting: Setting, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(setting.plan(5, 5))
    whole = setting.evaluator(tmp_path / "whole")
    expected = whole.outcome(request)
    left = steps

    def dying(*given: Any, **more: Any) -> Any:
        def after_step(rate: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        return fit(*given, after_step=after_step, **more)

    monkeypatch.setattr(module, "fit", dying)
    with pytest.raises(Killed):
        setting.evaluator(tmp_path / "killed").outcome(request)
    monkeypatch.undo()
    # Another evaluator, as another process has it.
    again = setting.evaluator(tmp_path / "killed")
    assert replace(again.outcome(request), seconds=0) == replace(expected, seconds=0)
    for name, tensor in whole.trained(request.plan).items():
        assert torch.equal(again.trained(request.plan)[name], tensor), name


def test_a_finished_training_is_not_done_again_until_it_is_forgotten(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, request = setting.evaluator(tmp_path), Request(setting.plan(5, 5))
    steps = 0
    step = torch.optim.SGD.step

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(*given, **more)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    found = []
    for forget in (False, True, False):
        if forget:
            evaluator.forget([request.plan.digest, "never there"])
            assert not list((tmp_path / "candidates").iterdir())
        found.append((replace(evaluator.outcome(request), seconds=0), steps))
    assert found[0][0] == found[1][0] == found[2][0]
    assert [count for _, count in found] == [8, 16, 16]


def test_a_candidate_that_diverges_has_no_fitness(setting: Setting, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"lr": 1e30})
    evaluator = setting.evaluator(tmp_path, FitnessOptions(recipe))
    request = Request(setting.plan(5, 5))

    for _ in range(2):
        outcome = evaluator.outcome(request)
        assert (outcome.fitness, outcome.epochs, outcome.diverged) == (0.0, 0, True)
        assert outcome.seconds > 0


def test_without_validation_images_it_says_what_to_do(setting: Setting, tmp_path: Path) -> None:
    setting.splits = replace(setting.splits, validation=None)

    with pytest.raises(TrainingError, match=r"^method\.fitness_split: .* fitness_split: test\)$"):
        setting.evaluator(tmp_path)
    assert setting.evaluator(tmp_path, FitnessOptions(RECIPE, split="test"))


def test_what_a_recipe_cannot_have_is_said_of_its_field(setting: Setting, tmp_path: Path) -> None:
    evaluator = setting.evaluator(
        tmp_path, FitnessOptions(RECIPE.model_copy(update={"precision": "fp16"}))
    )

    with pytest.raises(TrainingError, match=r"^method\.fitness\.precision: fp16 needs a GPU"):
        evaluator.outcome(Request(setting.plan(5, 5)))
