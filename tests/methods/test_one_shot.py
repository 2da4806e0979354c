from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastprune as fp
from fastprune import data, models
from fastprune.errors import FastpruneError
from fastprune.methods import MethodContext, PruneOptions
from fastprune.methods.one_shot import OneShotOptions, one_shot
from fastprune.testing.latency import FormulaClock
from fastprune.training import TrainingOptions, evaluate, recalibrate_batch_norm
from fastprune.training.progress import SilentProgress

FINETUNE = TrainingOptions(epochs=4, lr=0.05)


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return data.load(
        data.DataOptions(name="digits", train_limit=128, test_limit=32, batch_size=32), 0
    )


def context(
    folder: Path, splits: data.Splits, finetune: TrainingOptions | None = None, **prune: Any
) -> MethodContext:
    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return models.build("resnet20_cifar", depth=8)

    model, example = fresh(0), torch.zeros(1, 3, 32, 32)
    return MethodContext(
        model=model,
        graph=fp.trace(model, example),
        example=example,
        splits=splits,
        prune=PruneOptions(**prune),
        directory=folder,
        seed=0,
        device=torch.device("cpu"),
        fresh=fresh,
        finetune=finetune,
        progress=SilentProgress(),
    )


def share(here: MethodContext, plan: fp.PruningPlan, metric: str = "macs") -> float:
    return getattr(here.graph.cost(plan), metric) / getattr(here.graph.cost(), metric)


@pytest.mark.parametrize("criterion", fp.criteria.registry.names())
def test_every_criterion_meets_the_budget(
    tmp_path: Path, splits: data.Splits, criterion: str
) -> None:
    here = context(tmp_path, splits, budget={"macs": 0.5})
    if criterion == "batch_norm_scale":
        for module in here.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
    options = OneShotOptions(criterion=criterion, batches=2)
    result = one_shot(here, options)

    assert 0.48 < share(here, result.plan) <= 0.5
    assert result.model is here.model
    assert result.pruned_state is None
    assert one_shot(here, options).plan == result.plan


def test_rounds_reach_the_same_budgets_by_a_geometric_path(
    tmp_path: Path, splits: data.Splits
) -> None:
    here = context(tmp_path, splits, budget={"macs": 0.3, "params": 60_000.0})
    result = one_shot(here, OneShotOptions(iterations=3))
    rounds = [
        fp.PruningPlan.from_json(json.loads(path.read_text()))
        for path in sorted(tmp_path.glob("round-?.json"))
    ]

    assert [round(share(here, plan), 2) for plan in rounds] == pytest.approx(
        [0.3 ** (1 / 3), 0.3 ** (2 / 3), 0.3], abs=0.02
    )
    assert rounds[-1] == result.plan
    assert here.graph.cost(result.plan).params <= 60_000
    assert result.pruned_state is None
    for before, after in itertools.pairwise(rounds):
        assert all(set(kept) <= set(before.keep[name]) for name, kept in after.keep.items())
    small = fp.apply_plan(here.model, here.graph, result.plan)
    assert sum(p.numel() for p in small.parameters()) == here.graph.cost(result.plan).params


def test_what_is_fine_tuned_between_rounds_is_what_goes_on(
    tmp_path: Path, splits: data.Splits
) -> None:
    here = context(tmp_path, splits, FINETUNE, budget={"macs": 0.5})
    result = one_shot(here, OneShotOptions(iterations=2, finetune_between=1))
    small = fp.apply_plan(here.model, here.graph, result.plan)

    assert result.pruned_state is not None
    expected = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert {name: tensor.shape for name, tensor in result.pruned_state.items()} == expected
    assert not torch.equal(result.pruned_state["conv1.weight"], small.state_dict()["conv1.weight"])
    assert (tmp_path / "round-1" / "metrics.jsonl").is_file()


def test_rounds_that_are_done_are_not_done_again(tmp_path: Path, splits: data.Splits) -> None:
    options = OneShotOptions(iterations=2, finetune_between=1)
    here = context(tmp_path, splits, FINETUNE, budget={"macs": 0.5})
    first = one_shot(here, options)
    stamp = (tmp_path / "round-1.safetensors").stat().st_mtime_ns
    (tmp_path / "round-2.json").unlink()
    again = one_shot(here, options)

    assert again.plan == first.plan
    assert (tmp_path / "round-1.safetensors").stat().st_mtime_ns == stamp
    assert first.pruned_state is not None
    assert again.pruned_state is not None
    for name, tensor in first.pruned_state.items():
        assert torch.equal(tensor, again.pruned_state[name])


def test_ratios_alone_need_no_budget(tmp_path: Path, splits: data.Splits) -> None:
    here = context(tmp_path, splits, ratios={"layer1.*": 0.5})
    once = one_shot(here, OneShotOptions()).plan
    rounds = one_shot(here, OneShotOptions(iterations=2)).plan

    assert once.widths()["layer1.0.conv1"] == 8
    assert abs(rounds.widths()["layer1.0.conv1"] - 8) <= 1
    assert once.widths()["layer3.0.conv1"] == rounds.widths()["layer3.0.conv1"] == 64


def test_a_latency_budget_is_met(
    tmp_path: Path, splits: data.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fastprune.methods._solving.DeviceClock",
        lambda options, device: FormulaClock(options.batch_size),
    )
    here = context(tmp_path, splits, budget={"latency_ms": 0.7})
    result = one_shot(here, OneShotOptions())
    small = fp.apply_plan(here.model, here.graph, result.plan)
    facts, clock = result.notes["latency"], FormulaClock()

    assert facts["reached_ms"] == pytest.approx(clock.whole(small, here.example), rel=1e-4)
    assert facts["limit_ms"] == pytest.approx(
        0.7 * clock.whole(here.model, here.example), rel=1e-4
    )
    assert 0.95 < facts["reached_ms"] / facts["limit_ms"] <= 1.05
    wrong = OneShotOptions(iterations=2).problems(here.prune)
    assert wrong == [
        "prune.budget.latency_ms: cannot be reached in rounds; expected method.iterations 1, got 2"
    ]


def test_fine_tuning_between_rounds_needs_a_recipe(tmp_path: Path, splits: data.Splits) -> None:
    here = context(tmp_path, splits, budget={"macs": 0.5})

    with pytest.raises(FastpruneError, match="borrows its recipe from finetune"):
        one_shot(here, OneShotOptions(iterations=2, finetune_between=1))


def one_by_one(here: MethodContext, plan: fp.PruningPlan, batches: int) -> tuple[nn.Module, float]:
    small = fp.apply_plan(here.model, here.graph, plan)
    recalibrate_batch_norm(small, here.splits.train, batches, here.device)
    assert here.splits.validation is not None
    return small, evaluate(small, here.splits.validation, device=here.device).top1


@pytest.fixture(scope="module")
def validated() -> data.Splits:
    options = data.DataOptions(train_limit=256, validation=100, test_limit=32, batch_size=32)
    return data.load(options, 0)


def test_of_several_criteria_the_one_that_keeps_most_accuracy_is_taken(
    tmp_path: Path, validated: data.Splits
) -> None:
    names = ("random", "l1", "taylor")
    here = context(tmp_path, validated, budget={"macs": 0.5})
    notes: list[str] = []

    class Noting(SilentProgress):
        def note(self, message: str) -> None:
            notes.append(message)

    options = OneShotOptions(criterion=names, evaluator="shared", recalibrate_batches=3, batches=2)
    assert options.problems(here.prune) == []
    assert options.needs_validation
    result = one_shot(replace(here, progress=Noting()), options)
    found = {}
    for name in names:
        plan = one_shot(here, OneShotOptions(criterion=name, batches=2)).plan
        found[name] = (plan, *one_by_one(here, plan, 3))
    best = max(names, key=lambda name: found[name][2])

    assert result.notes == {
        "criterion": best,
        "fitness": {name: found[name][2] for name in names},
    }
    plan, small, _ = found[best]
    assert result.plan == plan
    assert result.pruned_state is not None
    for name, tensor in small.state_dict().items():
        assert torch.equal(result.pruned_state[name], tensor), name
    (line,) = notes
    assert line.startswith("criteria by validation accuracy, not fine-tuned: random ")
    assert line.endswith(f"; taking {best}")


def test_of_equal_criteria_the_first_is_taken(tmp_path: Path, validated: data.Splits) -> None:
    # Without a head every network says the same.
    here = context(tmp_path, validated, budget={"macs": 0.5})
    for module in here.model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
    options = OneShotOptions(criterion=("random", "l1"), evaluator="shared")

    assert one_shot(here, options).notes["criterion"] == "random"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"criterion": ["l1", "taylor"]}, ["method.evaluator: expected shared where method.crit"]),
        ({"criterion": ["l1"], "evaluator": "shared"}, ["method.criterion: expected one by name"]),
        (
            {"criterion": ["l1", "l1"], "evaluator": "shared"},
            ["method.criterion: expected one by name, or several different ones, got ['l1', 'l1'"],
        ),
        (
            {"criterion": ["l1", "taylor"], "evaluator": "shared", "iterations": 2},
            ["method.iterations: expected 1 where method.criterion are several, got 2"],
        ),
        (
            {"evaluator": "shared", "recalibrate_batches": 3},
            [
                "method.evaluator: chooses between several criteria, and method.criterion is one",
                "method.recalibrate_batches: chooses between several criteria",
            ],
        ),
        ({"criterion": ["l1", "taylor"], "evaluator": "shared"}, []),
    ],
)
def test_several_criteria_that_do_not_go_together(
    given: dict[str, Any], expected: list[str]
) -> None:
    options = OneShotOptions.model_validate(given)
    found = options.problems(PruneOptions(budget={"macs": 0.5}))

    assert len(found) == len(expected)
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning)
    assert OneShotOptions.model_validate(options.model_dump(mode="json")) == options


def test_an_unknown_one_of_several_criteria_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown criterion 'l3'; "):
        OneShotOptions.model_validate({"criterion": ["l1", "l3"]})
    assert not OneShotOptions().needs_validation


def test_several_criteria_need_validation_images(tmp_path: Path, splits: data.Splits) -> None:
    here = context(tmp_path, replace(splits, validation=None), budget={"macs": 0.5})

    with pytest.raises(FastpruneError, match=r"looks at validation images"):
        one_shot(here, OneShotOptions(criterion=("l1", "random"), evaluator="shared"))
