"""How the states of lottery tickets train: the penalty, teachers, and which epochs are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lottery_runs import (
    TRAIN,
    State,
    context_of,
    copied,
    few_digits,
    options_of,
    same,
    spied,
    tickets,
)
from torch import nn

from fastprune import data
from fastprune.artifact import load_state
from fastprune.errors import FastpruneError
from fastprune.methods import lottery as method
from fastprune.methods._states import read_states
from fastprune.methods.lottery import lottery
from fastprune.training import EpochRecord, FitResult, fit


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return few_digits()


STRONG = {
    "plain": {"reg_granularity_prune": 0},
    "x": {"schedule": "x", "reg_granularity_prune": 0.03, "reg_limit": 10},
    "exp_custom_exponents": {"reg_granularity_prune": 6, "reg_limit": 6, "exponents": 2},
}


@pytest.mark.parametrize(("variant", "rate", "shrunk"), [("rsst", 0.4, 0.05), ("rst", 0.7, 0.1)])
def test_the_penalty_makes_cutting_cheap(
    variant: str, rate: float, shrunk: float, tmp_path: Path
) -> None:
    chosen = data.DataOptions(train_limit=192, test_limit=40, batch_size=32, validation=200)
    splits = data.load(chosen, 0)
    train = {"epochs": 20, "lr": 0.1, "precision": "fp32", "schedule": "linear"}
    last, masks = {}, {}
    for name, given in STRONG.items():
        folder = tmp_path / name
        options = options_of(variant, start="lt", pruning_times=1, rate=rate, train=train, **given)
        context = context_of(folder, options, splits)
        lottery(context, options)
        last[name] = read_states(folder / "states.jsonl")[1]
        masks[name] = tickets(folder, context, options)[1].penalised
    plain = last.pop("plain")
    assert plain.penalised_norm is not None
    assert plain.cut_top1 is not None
    for name, record in last.items():
        # The same weights, so that norms can be compared.
        assert same(masks[name], masks["plain"])
        assert record.penalised_norm is not None
        assert record.cut_top1 is not None
        assert record.penalised_norm < shrunk * plain.penalised_norm, name
        # A margin of twenty images.
        assert record.cut_top1 > plain.cut_top1 + 10, name


@pytest.mark.parametrize("start", ["lt", "pt"])
def test_states_learn_from_the_unpruned_network(
    start: str, tmp_path: Path, splits: data.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of("refill", start=start, train=TRAIN | {"distill": {"alpha": 1.0}})
    context, seen = context_of(tmp_path, options, splits), spied(monkeypatch, tmp_path)
    lottery(context, options)

    first, *others = [given["teacher"] for given in seen.given]
    assert [given["options"].distill is not None for given in seen.given] == [
        start == "pt",
        True,
        True,
    ]
    expected = copied(context.model) if start == "pt" else seen.ended[0]
    assert first is None if start == "lt" else same(copied(first), expected)
    assert all(same(copied(teacher), expected) for teacher in others)


def test_accumulation_makes_fewer_steps_of_the_penalty(
    tmp_path: Path, splits: data.Splits
) -> None:
    strengths = {}
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        options = options_of(
            "rsst",
            start="lt",
            pruning_times=1,
            schedule="exp_custom",
            reg_granularity_prune=0.5,
            train=TRAIN | {"accumulate": accumulate},
        )
        lottery(context_of(folder, options, splits), options)
        strengths[accumulate] = read_states(folder / "states.jsonl")[1].strengths
    # Whatever their number, the last of them ends the schedule, at its granularity.
    for found in strengths.values():
        assert found[-1] == pytest.approx((2, 0.5))
        assert found[0][1] == pytest.approx(0.5 * math.expm1(0.5) / math.expm1(1))


def test_the_penalty_waits_for_accuracy(tmp_path: Path, splits: data.Splits) -> None:
    found = {}
    for target in (None, 99.9):
        folder = tmp_path / str(target)
        options = options_of(
            "rst", start="lt", pruning_times=1, schedule="exp_custom", dynamic_target=target
        )
        lottery(context_of(folder, options, splits), options)
        found[target] = [r for _, r in read_states(folder / "states.jsonl")[1].strengths]
    assert found[99.9] == pytest.approx([found[None][0], found[None][1] / 2])
    options = options_of("rst", dynamic_target=50.0)
    blind = data.load(data.DataOptions(train_limit=96, test_limit=40, validation=0), 0)
    with pytest.raises(FastpruneError, match=r"^method\.dynamic_target: there are no validation"):
        lottery(context_of(tmp_path / "blind", options, blind), options)


def test_a_penalty_that_would_never_grow_is_refused(tmp_path: Path, splits: data.Splits) -> None:
    options = options_of("rsst", reg_update_interval=1000)

    with pytest.raises(FastpruneError, match=r"^method\.reg_update_interval: got 1000, and a "):
        lottery(context_of(tmp_path, options, splits), options)
    assert not any(tmp_path.iterdir())


def test_without_validation_images_there_is_no_best_epoch(tmp_path: Path) -> None:
    blind = data.load(data.DataOptions(train_limit=96, test_limit=40, validation=0), 0)
    options = options_of("rsst", pruning_times=1)
    lottery(context_of(tmp_path, options, blind), options)

    for record in read_states(tmp_path / "states.jsonl"):
        found = (record.validation_top1, record.cut_top1, record.best_validation_top1)
        assert found == (None, None, None)
        assert record.test_top1 is not None
    assert {file.name for file in (tmp_path / "states").iterdir()} == {
        "state-00.safetensors",
        "state-01.safetensors",
    }


def test_the_first_of_the_best_epochs_is_kept(
    tmp_path: Path, splits: data.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    best: list[list[tuple[float, State]]] = []

    def train(model: nn.Module, splits: data.Splits, recipe: Any, **given: Any) -> FitResult:
        best.append([])
        after = given["after_epoch"]
        accuracies = iter([10.0, 30.0, 30.0, 20.0])

        def after_epoch(record: EpochRecord) -> None:
            seen = replace(record, validation_top1=next(accuracies))
            best[-1].append((seen.validation_top1 or 0, copied(model)))
            after(seen)

        return fit(model, splits, recipe, **given | {"after_epoch": after_epoch})

    monkeypatch.setattr(method, "fit", train)
    options = options_of("refill", train=TRAIN | {"epochs": 4}, pruning_times=1)
    lottery(context_of(tmp_path, options, splits), options)

    for number, record in enumerate(read_states(tmp_path / "states.jsonl")):
        assert record.best_validation_top1 == 30
        state = load_state(tmp_path / f"states/state-{number:02}-best.safetensors")
        assert same(dict(sorted(state.items())), dict(sorted(best[number][1][1].items())))
        assert not same(best[number][1][1], best[number][2][1])


def test_a_training_that_keeps_its_best_epoch(tmp_path: Path, splits: data.Splits) -> None:
    options = options_of(
        "imp", train=TRAIN | {"epochs": 4, "lr": 0.3, "keep": "best"}, pruning_times=1
    )
    lottery(context_of(tmp_path, options, splits), options)

    for number, record in enumerate(read_states(tmp_path / "states.jsonl")):
        assert record.validation_top1 == record.best_validation_top1
        names = (f"state-{number:02}.safetensors", f"state-{number:02}-best.safetensors")
        one, other = (load_state(tmp_path / "states" / name) for name in names)
        assert same(one, other)
