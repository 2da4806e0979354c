"""Small networks and data of the training tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fastprune.data import DataOptions, Splits, load


@pytest.fixture
def make_model() -> Callable[..., nn.Sequential]:
    """A small network for 32x32 digits, the same for the same arguments."""

    def make(*, norm: bool = True, dropout: float = 0.2, seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, 10),
        )

    return make


@pytest.fixture
def few_digits() -> Splits:
    """112 training images in 4 batches, 40 for validation, 40 for test."""
    return load(DataOptions(batch_size=32, validation=40, train_limit=112, test_limit=40), seed=0)


class FakeGraphs:
    """CUDA graphs without a GPU.

    As there, recording computes nothing and a replay writes where the recorded outputs lie. Here
    the recording does compute, so the tensors that ``state`` gives are put back after it.

    Attributes:
        waits: what a warm-up is said to have waited for.
        fails: what recording fails with.
        log: "aside", "record" and "replay", as they came.
    """

    def __init__(self, state: Callable[[], list[torch.Tensor]] = list) -> None:
        self._state = state
        self.waits: list[str] = []
        self.fails: RuntimeError | None = None
        self.log: list[str] = []

    @contextmanager
    def aside(self) -> Iterator[list[str]]:
        self.log.append("aside")
        waits: list[str] = []
        yield waits
        waits += self.waits

    def record(
        self, work: Callable[[], tuple[torch.Tensor, ...]]
    ) -> tuple[tuple[torch.Tensor, ...], Callable[[], None]]:
        self.log.append("record")
        if self.fails is not None:
            raise self.fails
        kept = [tensor.clone() for tensor in self._state()]
        random = torch.get_rng_state()
        outputs = work()
        torch.set_rng_state(random)
        for tensor, before in zip(self._state(), kept, strict=True):
            tensor.copy_(before)

        def replay() -> None:
            self.log.append("replay")
            for place, value in zip(outputs, work(), strict=True):
                place.copy_(value)

        return outputs, replay


@pytest.fixture
def fake_graphs() -> type[FakeGraphs]:
    return FakeGraphs
