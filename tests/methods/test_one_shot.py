from __future__ import annotations

import itertools
import json
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
from fastprune.training import TrainingOptions
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


def test_a_latency_budget_is_measured(
    tmp_path: Path, splits: data.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(model: nn.Module, inputs: list[torch.Tensor]) -> float:
        return float(sum(parameter.numel() for parameter in model.parameters()))

    monkeypatch.setattr("fastprune.methods.one_shot.measure_latency", counted)
    here = context(tmp_path, splits, budget={"latency_ms": 0.5})
    plan = one_shot(here, OneShotOptions()).plan

    assert 0.45 < share(here, plan, "params") <= 0.5
    with pytest.raises(FastpruneError, match="cannot be reached in rounds"):
        one_shot(here, OneShotOptions(iterations=2))


def test_fine_tuning_between_rounds_needs_a_recipe(tmp_path: Path, splits: data.Splits) -> None:
    here = context(tmp_path, splits, budget={"macs": 0.5})

    with pytest.raises(FastpruneError, match="borrows its recipe from finetune"):
        one_shot(here, OneShotOptions(iterations=2, finetune_between=1))
