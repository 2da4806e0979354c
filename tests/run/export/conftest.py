"""What the tests of exports share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from export_cases import BareProcess, save_pruned


@pytest.fixture(scope="session")
def bare() -> Iterator[BareProcess]:
    started = BareProcess()
    yield started
    started.process.communicate()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stem of a small saved network; to be left as it is."""
    stem = tmp_path_factory.mktemp("saved") / "small"
    save_pruned(stem, "resnet20_cifar", depth=8)
    return stem
