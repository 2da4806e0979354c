"""Fixtures of every test: one thread, a fixed seed, uninitialised memory full of NaN."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

import fastprune

# A Python that a test starts here imports the fastprune that is installed, as pytest does, and
# not the source tree that it stands in (Python 3.11 and later).
os.environ["PYTHONSAFEPATH"] = "1"

# The same examples every time; a slow machine is no failure.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_report_header() -> list[str]:
    data = os.environ.get("FASTPRUNE_DATA", "not set: tests on real data are skipped")
    return [
        f"fastprune {fastprune.__version__} at {Path(fastprune.__file__).parent}",
        f"torch {torch.__version__}, FASTPRUNE_DATA {data}",
    ]


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """One thread and one seed; memory that nobody wrote to reads as NaN.

    torch fills fresh memory only while deterministic algorithms are on; warnings alone, since
    some operators on a GPU have no deterministic version.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before, warn_only=warned)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images go to a folder of the tests, not to the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def fastprune_data() -> Path:
    """The folder of real data; tests that ask for it are skipped without it."""
    place = os.environ.get("FASTPRUNE_DATA")
    if not place:
        pytest.skip("FASTPRUNE_DATA is not set: no real data")
    folder = Path(place)
    if not folder.is_dir():
        pytest.fail(f"FASTPRUNE_DATA: {folder} is not a folder")
    return folder


class Ranks:
    """Starts the ranks of a task in a moment, by a process that has imported everything."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("rank_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        world: int,
        file: Path,
        name: str,
        *arguments: Any,
        started: bool = True,
        timeout: float = 120,
        expected: tuple[str, ...] = (),
    ) -> list[Any]:
        """What a function of a file gives on each rank; None where it was killed.

        Args:
            world: how many ranks.
            file: with the function.
            name: of the function.
            arguments: plain data.
            started: whether the ranks know each other before it is called.
            timeout: seconds that they wait for each other.
            expected: errors that may end it, by the names of their classes.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {
            "world": world,
            "file": str(file),
            "name": name,
            "arguments": arguments,
            "started": started,
            "timeout": timeout,
            "expected": expected,
        }
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        if not expected:
            assert not any(answer["codes"]), answer
        found: list[Any] = answer["found"]
        return found


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    started = Ranks()
    yield started
    started.process.communicate()
