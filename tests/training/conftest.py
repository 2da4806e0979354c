"""Small networks and data of the training tests."""

from __future__ import annotations

from collections.abc import Callable

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
