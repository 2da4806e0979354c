"""Processes that train candidates: what they give, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import assert_they_end_together

Told = tuple["subprocess.Popen[str]", list[dict[str, Any]]]


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """The script and all that it says before it waits."""
    script = Path(__file__).with_name("crew_script.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for _ in range(11):
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            lines.append(json.loads(line))
        yield process, lines
        process.kill()


def test_outcomes_come_as_they_are_known_from_several_processes(told: Told) -> None:
    found = told[1][0]

    assert found["names"] == ["wait 0.2"] * 3 + ["wait 2"]
    assert len(found["pids"]) == 2
    # Two threads, shared out.
    assert found["threads"] == [1]


def test_what_the_user_can_mend_is_said_and_the_crew_goes_on(told: Told) -> None:
    _, unreadable, nothing, after, *_ = told[1]

    assert unreadable == {"error": "DataError", "message": "data.root: no such image"}
    assert nothing["names"] == []
    assert after["names"] == ["wait 0"]


def test_fewer_at_a_time_go_on_where_memory_is_too_small(told: Told) -> None:
    found = told[1][4]

    assert len(found["names"]) == 4
    assert found["said"] == [
        "method.parallel: memory is too small for 2 candidates at a time; going on with 1"
    ]


def test_an_error_does_not_wait_for_what_is_under_way(told: Told) -> None:
    error, ended = told[1][5:7]

    assert error["message"] == "data.root: no such image"
    assert ended == {"left": 0, "soon": True}


def test_a_killed_process_is_one_clear_error(told: Told) -> None:
    *_, killed, left, refused, _ = told[1]

    assert killed["error"] == "TrainingError"
    assert killed["message"].startswith("method.parallel: a process that trained candidates was ")
    assert "\n" not in killed["message"]
    assert left == {"left": 0}
    assert refused["error"] == "TrainingError"
    assert "could not be opened" in refused["message"]


def test_processes_end_with_the_one_that_made_them(told: Told) -> None:
    process, lines = told
    pids = lines[-1]["pids"]
    assert len(pids) == 2
    assert_they_end_together(process, pids)
