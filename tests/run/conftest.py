"""Runs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastprune.config import make_config
from fastprune.run import pipeline


class Server:
    """Starts runs in a moment, each in a process of its own that is killed at a chosen event."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        given: dict[str, Any],
        folder: Path,
        event: str = "",
        count: int = 0,
        until: str = "report",
    ) -> int:
        """The exit code of a run; -9 if it was killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"given": given, "folder": str(folder), "event": event, "count": count}
        order["until"] = until
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.process.communicate()


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
