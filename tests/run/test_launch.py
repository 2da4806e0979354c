"""``--gpus``: what it refuses, and what it hands on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastprune.cli.running import _without_gpus
from fastprune.config import RunConfig, make_config
from fastprune.errors import ConfigError
from fastprune.run import launch


def config(device: str) -> RunConfig:
    given: dict[str, Any] = {
        "model": {"name": "resnet20_cifar"},
        "data": {"name": "digits"},
        "method": "one_shot",
        "prune": {"budget": {"macs": 0.5}},
        "baseline": {"epochs": 1},
        "device": device,
    }
    return make_config(given)


@pytest.mark.parametrize(("there", "known"), [(0, "there is no GPU"), (4, "there are 4 GPUs")])
def test_more_ranks_than_gpus_are_refused(
    there: int, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ConfigError, match=f"^--gpus: got 8, but {known} here; device=cpu"):
        launch.check_ranks(8, config("auto"))
    launch.check_ranks(8, config("cpu"))
    if there:
        launch.check_ranks(4, config("auto"))


def test_ranks_of_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun has begun these processes already"):
        launch.check_ranks(2, config("cpu"))


def test_ranks_are_given_all_but_their_number() -> None:
    given = ["run", "a.yaml", "--gpus", "8", "data.root=--gpus", "--out", "x", "--gpus=2"]
    assert _without_gpus(given) == ["run", "a.yaml", "data.root=--gpus", "--out", "x"]
