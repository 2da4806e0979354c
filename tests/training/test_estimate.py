"""How long an epoch takes: near the truth, and nothing is left altered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fastprune.data import DataOptions, Splits, load
from fastprune.training import TrainingOptions
from fastprune.training._estimate import epoch_seconds

CPU = torch.device("cpu")
RECIPE = TrainingOptions(epochs=2, lr=0.05)


class Slow(nn.Sequential):
    """Takes so long a batch."""

    seconds = 0.03

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        found: torch.Tensor = super().forward(x)
        return found


@pytest.mark.parametrize("at_most", [10.0, 0.05])
def test_it_is_an_epochs_time_measured_or_extrapolated(few_digits: Splits, at_most: float) -> None:
    splits = load(DataOptions(batch_size=8, validation=0, train_limit=80, test_limit=40), seed=0)
    model = Slow(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    begun = time.perf_counter()
    found = epoch_seconds(model, splits.train, RECIPE, CPU, at_most=at_most)
    taken = time.perf_counter() - begun

    # Only the floor is safe on a busy machine.
    assert found >= 10 * Slow.seconds
    assert found < 10 * taken


def test_a_single_batch_is_measured_too(make_model: Callable[..., nn.Sequential]) -> None:
    splits = load(DataOptions(batch_size=64, validation=0, train_limit=40, test_limit=40), seed=0)

    assert splits.train.batches == 1
    assert 0 < epoch_seconds(make_model(), splits.train, RECIPE, CPU) < 60


@pytest.mark.parametrize("train", [True, False])
def test_network_and_random_numbers_are_left_as_they_are(
    make_model: Callable[..., nn.Sequential], few_digits: Splits, train: bool
) -> None:
    model = make_model().train(train)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    epoch_seconds(model, few_digits.train, RECIPE, CPU)

    assert model.training is train
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor), name
    assert torch.equal(torch.get_rng_state(), random)


def test_it_looks_at_no_more_than_it_needs(
    make_model: Callable[..., nn.Sequential], few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    epoch = type(few_digits.train).epoch

    def counted(self: Any, *given: Any, **more: Any) -> Iterator[Any]:
        nonlocal taken
        for batch in epoch(self, *given, **more):
            taken += 1
            yield batch

    monkeypatch.setattr(type(few_digits.train), "epoch", counted)
    epoch_seconds(make_model(), few_digits.train, RECIPE, CPU, at_most=0.0)

    # Two to warm up, and one.
    assert taken == 3
