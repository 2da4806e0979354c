from __future__ import annotations

import math

import pytest

from fastprune.training import TrainingOptions
from fastprune.training.schedule import learning_rate


def rates(steps_per_epoch: int = 10, **given: object) -> list[float]:
    options = TrainingOptions.model_validate({"lr": 1.0, **given})
    total = options.epochs * steps_per_epoch
    return [learning_rate(options, step, steps_per_epoch) for step in range(total)]


def test_multistep_falls_at_epochs_and_at_fractions() -> None:
    expected = [1.0] * 50 + [0.1] * 30 + [0.01] * 20
    for milestones in ((5, 8), (0.5, 0.8), (0.5, 8)):
        found = rates(epochs=10, schedule="multistep", milestones=milestones)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [3, 7, 99])
def test_milestones_fall_however_many_epochs_there_are(epochs: int) -> None:
    found = rates(epochs=epochs, schedule="multistep", milestones=(0.5, 0.75))
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(0.01)
    assert len({round(rate, 6) for rate in found}) == 3
    assert found.index(pytest.approx(0.1)) == round(epochs * 10 / 2)


def test_cosine_goes_from_lr_to_nearly_nothing() -> None:
    found = rates(epochs=4, schedule="cosine")
    assert found == pytest.approx([(1 + math.cos(math.pi * k / 40)) / 2 for k in range(40)])


def test_linear_and_constant() -> None:
    assert rates(epochs=2, schedule="linear") == pytest.approx([1 - k / 20 for k in range(20)])
    assert rates(epochs=2, schedule="constant") == [1.0] * 20


@pytest.mark.parametrize("schedule", ["multistep", "cosine", "linear", "constant"])
def test_warmup_rises_evenly_to_lr(schedule: str) -> None:
    found = rates(epochs=4, schedule=schedule, warmup_epochs=0.5)
    assert found[:5] == pytest.approx([k / 6 for k in range(1, 6)])
    assert found[5] == pytest.approx(1.0)
    assert all(0 < rate <= 1 for rate in found)
