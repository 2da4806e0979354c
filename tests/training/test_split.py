"""Experts in processes of their own: what they give, and how they end."""

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
    script = Path(__file__).with_name("split_script.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for _ in range(8):
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            lines.append(json.loads(line))
        yield process, lines
        process.kill()


def test_logits_are_those_of_the_fused_network_bit_for_bit(told: Told) -> None:
    found = told[1][0]

    assert found["same"] == [True] * 4
    assert found["children"] == found["experts"] == 2


def test_times_are_parts_of_the_whole(told: Told) -> None:
    found = told[1][0]

    assert found["adds"]
    assert found["alone"]


def test_too_many_images_are_refused_and_it_goes_on(told: Told) -> None:
    _, many, killed, *_ = told[1]

    assert many == {"error": "ValueError", "message": "x: expected at most 8 images, got 9"}
    assert killed["error"] == "TrainingError"


def test_a_killed_process_is_one_clear_error(told: Told) -> None:
    _, _, killed, left, *_ = told[1]

    assert killed["message"].startswith("expert b on cpu: its process ended (exit code -9)")
    assert left == {"left": 0}


def test_an_expert_that_cannot_be_opened_is_said_and_ends_all(told: Told) -> None:
    missing, left, few = told[1][4:7]

    assert missing == {
        "error": "ArtifactError",
        "message": "expert 1: x.safetensors is missing",
    }
    assert left == {"left": 0}
    assert few["message"] == "head: expected 1176 features, got one of 2352"


def test_processes_end_with_the_one_that_made_them(told: Told) -> None:
    process, lines = told
    pids = lines[-1]["pids"]
    assert len(pids) == 1
    assert_they_end_together(process, pids)
