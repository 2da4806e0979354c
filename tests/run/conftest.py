"""Runs in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_server import Server

from fastprune.config import make_config
from fastprune.run import pipeline


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


TINY: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {
        "name": "digits",
        "train_limit": 96,
        "test_limit": 40,
        "batch_size": 32,
        "validation": 40,
    },
    "baseline": {"epochs": 2, "lr": 0.05},
    "method": {"name": "one_shot", "iterations": 2, "finetune_between": 1},
    "prune": {"budget": {"macs": 0.5}},
    "finetune": {"epochs": 1, "lr": 0.05},
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}
METHODS: dict[str, dict[str, Any]] = {
    "gradual": {},
    "slimming": {
        "model": {"name": "resnet20_cifar", "options": {"depth": 8}},
        "baseline": None,
        "method": {"name": "slimming", "ratio": 0.5, "train": {"epochs": 1, "lr": 0.05}},
        "prune": {},
    },
    "colony": {
        "method": {"name": "abc", "food_number": 2, "max_cycle": 2, "calfitness_epoch": 1},
    },
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs of several methods, to be left as they are; copy to change one."""
    folder = tmp_path_factory.mktemp("finished")
    for name, given in METHODS.items():
        pipeline.run(make_config(TINY | given), folder / name, quiet=True)
    return folder
