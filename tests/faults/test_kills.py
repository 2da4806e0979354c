"""A part of `kills.py`, which kills runs of all methods."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fork_server import Server
from kills import campaign
from tiny_runs import RUNS


@pytest.mark.parametrize("name", ["slimming", "papm"])
def test_killed_at_random_a_run_ends_the_same(name: str, server: Server, tmp_path: Path) -> None:
    found = campaign(server, RUNS[name], tmp_path / "runs", 2, random.Random(name))

    assert found.wrong == []
    assert found.kills.total() == 2
    assert found.runs >= 1
