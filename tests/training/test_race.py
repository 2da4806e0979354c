"""Giving candidates up early: the test by hand, and what it does to a training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastprune.data import DataOptions, Splits, load
from fastprune.graph import PruningPlan, trace
from fastprune.training import TrainingOptions, fit
from fastprune.training import evaluator as module
from fastprune.training._race import SURE, Race, paired_z
from fastprune.training.evaluator import FitnessOptions, Outcome, Request, TrainedEvaluator

CPU = torch.device("cpu")
RECIPE = TrainingOptions(
    epochs=3, lr=0.02, precision="fp32", schedule="constant", checkpoint_every=0
)


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load(DataOptions(batch_size=32, validation=120, train_limit=192, test_limit=40), seed=0)


def right(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text], bool)


@pytest.mark.parametrize(
    ("a", "b", "z"),
    [
        # Right alone: a 4 times, b never. (4 - 0) / sqrt(4)
        ("11110", "00000", 2.0),
        # a 3 times, b once. (3 - 1) / sqrt(4)
        ("111011", "000111", 1.0),
        ("000111", "111011", -1.0),
        # Where both are right or both wrong says nothing.
        ("1100", "1100", 0.0),
        ("", "", 0.0),
        ("1" * 8 + "0" * 92, "0" * 99 + "1", 7 / 3),
    ],
)
def test_the_paired_test_by_hand(a: str, b: str, z: float) -> None:
    assert paired_z(right(a), right(b)) == pytest.approx(z, abs=1e-12)
    assert paired_z(right(b), right(a)) == pytest.approx(-z, abs=1e-12)


def test_by_chance_it_is_as_rare_as_it_says() -> None:
    # Both right alone equally often: the share of |z| beyond SURE is that of the normal law.
    generator = np.random.default_rng(0)
    lost = sum(
        paired_z(a, b) > SURE
        for a, b in (generator.random((4000, 2, 400)) < 0.7).transpose(0, 1, 2)
    )
    assert lost / 4000 < 3 * math.erfc(SURE / math.sqrt(2)) / 2


class Fixed(nn.Module):
    """Gets every so many images right; knows the labels by order."""

    def __init__(self, splits: Splits, share: float) -> None:
        super().__init__()
        assert splits.validation is not None
        self.labels = torch.cat([y for _, y in splits.validation.epoch(0)])
        self.right, self.seen = int(share * len(self.labels)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = torch.arange(self.seen, self.seen + len(x))
        labels = self.labels[at]
        self.seen = (self.seen + len(x)) % len(self.labels)
        guess = torch.where(at < self.right, labels, (labels + 1) % 10)
        return nn.functional.one_hot(guess, 10).float()


def race(folder: Path, splits: Splits, digest: str, rival: str | None) -> Race:
    assert splits.validation is not None
    return Race(
        folder,
        digest,
        rival,
        epochs=3,
        pipeline=splits.validation,
        topk=1,
        precision="fp32",
        channels_last=True,
        device=CPU,
    )


def test_who_is_behind_is_lost_and_nobody_else(digits: Splits, tmp_path: Path) -> None:
    rival = race(tmp_path, digits, "rival", None)
    assert not any(rival.lost(Fixed(digits, share), e) for e, share in [(1, 0.5), (2, 0.7)])
    # Before the rival has ended nothing is known of it.
    assert not race(tmp_path, digits, "early", "rival").lost(Fixed(digits, 0.1), 1)
    rival.close(80.0)

    for share, epoch, expected in [
        (0.1, 1, True),
        (0.45, 1, False),
        (0.6, 1, False),
        # At 50 % it is far behind the rival's 70 % after as many epochs.
        (0.5, 2, True),
        (0.1, 3, False),
    ]:
        name = f"candidate {share} {epoch}"
        assert race(tmp_path, digits, name, "rival").lost(Fixed(digits, share), epoch) is expected
    assert not race(tmp_path, digits, "free", None).lost(Fixed(digits, 0.0), 1)
    assert not race(tmp_path, digits, "other", "unheard of").lost(Fixed(digits, 0.0), 1)


def test_who_already_has_what_the_rival_ended_with_is_not_lost(
    digits: Splits, tmp_path: Path
) -> None:
    # A rival that was good after an epoch and ended badly.
    rival = race(tmp_path, digits, "rival", None)
    rival.lost(Fixed(digits, 0.9), 1)
    rival.close(30.0)

    assert not race(tmp_path, digits, "a", "rival").lost(Fixed(digits, 0.4), 1)
    assert race(tmp_path, digits, "b", "rival").lost(Fixed(digits, 0.2), 1)


class Setting:
    """A network whose narrowest candidate has no chance against the widest."""

    def __init__(self, model: nn.Module, splits: Splits) -> None:
        self.model, self.splits = model, splits
        self.graph = trace(model, torch.zeros(1, 3, 32, 32))

    def plan(self, *widths: int) -> PruningPlan:
        keep = {
            group.name: tuple(range(width))
            for group, width in zip(self.graph.groups, widths, strict=True)
        }
        return PruningPlan(keep, self.graph.widths())

    def evaluator(self, folder: Path, *, racing: bool = True) -> TrainedEvaluator:
        options = FitnessOptions(RECIPE, racing=racing)
        return TrainedEvaluator(
            self.model, self.graph, self.splits, options, directory=folder, seed=0, device=CPU
        )

    def raced(self, folder: Path, *widths: int, racing: bool = True) -> list[Outcome]:
        evaluator, source = self.evaluator(folder, racing=racing), self.plan(8, 8)
        requests = [Request(source), Request(self.plan(*widths), rival=source.digest)]
        return [replace(outcome, seconds=0) for _, outcome in evaluator.outcomes(requests)]


@pytest.fixture(scope="module")
def setting(digits: Splits) -> Setting:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )
    recipe = TrainingOptions(epochs=10, lr=0.1, precision="fp32")
    fit(model, replace(digits, validation=None), recipe, seed=0, device=CPU)
    return Setting(model, digits)


def test_a_hopeless_candidate_is_given_up_and_a_good_one_is_not(
    setting: Setting, tmp_path: Path
) -> None:
    source, hopeless = setting.raced(tmp_path / "a", 1, 1)
    _, good = setting.raced(tmp_path / "b", 8, 7)
    whole = setting.raced(tmp_path / "c", 8, 7, racing=False)

    assert (source.epochs, source.stopped) == (3, False)
    assert hopeless.stopped
    assert hopeless.epochs < 3
    assert hopeless.fitness < source.fitness
    # Racing does not change what is not given up.
    assert whole == [source, good]
    assert not good.stopped


class Killed(Exception):
    pass


@pytest.mark.parametrize("widths", [(1, 1), (8, 7)], ids=["given up", "not given up"])
@pytest.mark.parametrize("steps", [3, 7, 12])
def test_killed_in_any_epoch_it_is_given_up_or_not_all_the_same(
    setting: Setting,
    tmp_path: Path,
    widths: tuple[int, int],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = setting.raced(tmp_path / "whole", *widths)
    assert expected[1].stopped is (widths == (1, 1))
    setting.raced(tmp_path / "killed", 8, 8)
    left = steps

    def dying(*given: Any, **more: Any) -> Any:
        def after_step(rate: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        return fit(*given, after_step=after_step, **more)

    monkeypatch.setattr(module, "fit", dying)
    # One that was given up before has nothing left to be killed in.
    try:
        setting.raced(tmp_path / "killed", *widths)
    except Killed:
        pass
    else:
        assert steps > 6 * expected[1].epochs
    monkeypatch.undo()
    assert setting.raced(tmp_path / "killed", *widths) == expected
