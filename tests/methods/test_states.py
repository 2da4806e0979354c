from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastprune.errors import CheckpointError
from fastprune.methods._states import StateRecord, read_states, write_states

STATE = StateRecord(
    state=0,
    remaining_weights=80,
    prunable_weights=100,
    channels=12,
    full_channels=16,
    macs=1000,
    params=120,
    widths={"stem": 4, "conv1": 8},
    validation_top1=91.5,
    cut_top1=None,
    penalised_norm=None,
    best_validation_top1=92.0,
    test_top1=None,
    seconds=1.5,
    strengths=((0.5, 1e-4), (1.0, 2e-4)),
)


def test_states_are_read_as_they_were_written(tmp_path: Path) -> None:
    states = tuple(replace(STATE, state=number, macs=1000 - number) for number in range(12))
    write_states(tmp_path / "states.jsonl", states)

    assert read_states(tmp_path / "states.jsonl") == states
    assert StateRecord.from_dict(json.loads(json.dumps(STATE.to_dict()))) == STATE
    lines = (tmp_path / "states.jsonl").read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines] == list(range(12))
    assert json.loads(lines[0])["strengths"] == [[0.5, 1e-4], [1.0, 2e-4]]
    write_states(tmp_path / "states.jsonl", states[:2])
    assert read_states(tmp_path / "states.jsonl") == states[:2]


@pytest.mark.parametrize("cut", [1, 40])
def test_a_part_of_a_line_at_the_end_is_no_state_yet(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "states.jsonl"
    write_states(file, [STATE, replace(STATE, state=1)])
    file.write_bytes(file.read_bytes()[:-cut])

    assert read_states(file) == (STATE,)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("{", "line 2: not a state: Invalid JSON"),
        ("", "line 2: not a state: Invalid JSON"),
        ("[]", "line 2: not a state: "),
        (json.dumps({**STATE.to_dict(), "state": 2}), "line 2: expected state 1, got state 2"),
        (json.dumps({**STATE.to_dict(), "macs": "9"}), "line 2: not a state: macs: "),
        (json.dumps({**STATE.to_dict(), "flops": 9}), "line 2: not a state: flops: "),
    ],
)
def test_a_damaged_line_is_told_by_its_number(tmp_path: Path, second: str, expected: str) -> None:
    file = tmp_path / "states.jsonl"
    file.write_text(f"{json.dumps(STATE.to_dict())}\n{second}\n")

    with pytest.raises(CheckpointError) as caught:
        read_states(file)
    assert str(caught.value).startswith(f"{file}: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", -1),
        ("prunable_weights", 0),
        ("test_top1", 100.5),
        ("validation_top1", float("nan")),
        ("seconds", float("inf")),
        ("widths", {"stem": -1}),
        ("strengths", [[0.5]]),
        ("state", True),
    ],
)
def test_what_cannot_be_of_a_state_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        StateRecord.from_dict({**STATE.to_dict(), field: value})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.jsonl: No such file"):
        read_states(tmp_path / "none.jsonl")
