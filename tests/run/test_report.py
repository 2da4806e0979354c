from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import fastprune as fp
from fastprune.records import amount
from fastprune.run.report import (
    interleaved_latency,
    narrowest_groups,
)


class Spinner(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        # On one thread CPU time counts, in which sleep takes none.
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return x


def test_latency_is_the_median_of_runs_in_turns() -> None:
    slow, quick = Spinner(0.01), Spinner(0.002)
    found = interleaved_latency(slow, quick, (2, 3), torch.device("cpu"), repeats=5)

    assert slow.calls == quick.calls == 8
    assert found["unpruned_ms"] >= 10
    assert 2 <= found["pruned_ms"] < 10
    assert found["spread"] >= 0
    assert found["speedup"] == pytest.approx(found["unpruned_ms"] / found["pruned_ms"], rel=1e-2)
    assert (found["batch_size"], found["repeats"], found["device"]) == (2, 5, "cpu")


def test_the_narrowest_group_of_each_size_of_feature_maps() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.Linear(10, 2),
    )
    graph = fp.trace(model, torch.zeros(1, 3, 8, 8))
    plan = fp.PruningPlan({"0": (1, 2), "1": (0,), "2": (0, 3), "4": tuple(range(9))})

    assert narrowest_groups(graph, plan) == [
        {"maps": "8x8", "group": "1", "kept": 1, "of": 8},
        {"maps": "4x4", "group": "2", "kept": 2, "of": 4},
        {"maps": "1x1", "group": "4", "kept": 9, "of": 10},
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (26_657_408, "26,657,408"),
        (821_248, "821,248"),
        (0.705632, "0.705632"),
        (1.09634, "1.09634"),
    ],
)
def test_an_amount_has_no_powers_of_ten(value: float, text: str) -> None:
    assert amount(value) == text
