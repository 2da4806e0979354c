"""Fixtures of every test: one thread, a fixed seed, uninitialised memory full of NaN."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from rank_processes import Ranks

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


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    started = Ranks()
    yield started
    started.process.communicate()
