"""The log of a search, whole and as a kill leaves it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fastprune.methods._trials import Trial, TrialLog


def trial(number: int, fitness: float, plan: str | None = None, **more: object) -> Trial:
    made = Trial(
        number=number,
        phase="initial",
        code=(number + 1, 5),
        widths={"a": 3},
        cost={"macs": 10, "params": 5, "channels": 3},
        plan=plan or f"plan{number}",
        fitness=fitness,
        epochs=2,
        seconds=0.25,
    )
    return replace(made, **more)


def written(path: Path, *trials: Trial) -> bytes:
    log = TrialLog(path)
    for one in trials:
        log.add(one)
    return path.read_bytes()


def test_what_was_added_is_there_when_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    # Thirds have no short decimal: a fitness has to come back to the last bit.
    trials = [trial(1, 100 / 3), trial(0, 200 / 3), trial(2, 0.0, diverged=True)]
    content = written(path, *trials)

    assert [json.loads(line)["number"] for line in content.splitlines()] == [1, 0, 2]
    log = TrialLog(path)
    assert list(log) == [trials[1], trials[0], trials[2]]
    assert len(log) == 3
    assert path.read_bytes() == content


def test_a_new_log_is_empty(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")

    assert (len(log), list(log), log.best, log.of_plan("plan0")) == (0, [], None, None)


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "trials.jsonl"
    content = written(path, trial(0, 10.0), trial(1, 20.0))
    path.write_bytes(content[:-cut])
    log = TrialLog(path)

    assert [one.number for one in log] == [0]
    log.add(trial(1, 20.0))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b"7\n",
        b"{}\n",
        b'{"code": 5}\n',
        *(
            json.dumps(asdict(trial(1, 1.0)) | wrong).encode() + b"\n"
            for wrong in (
                {"more": 1},
                {"fitness": None},
                {"fitness": "1"},
                {"fitness": float("nan")},
                {"seconds": None},
                {"number": "1"},
                {"number": -1},
                {"code": [1, "5"]},
                # It names a folder to remove.
                {"plan": "../.."},
                {"plan": ""},
                # A second time.
                {"number": 0},
            )
        ),
    ],
)
def test_from_garbage_on_nothing_counts(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    first = written(path, trial(0, 10.0))
    path.write_bytes(
        first + garbage + b"".join(written(tmp_path / "b", trial(2, 30.0)).splitlines(True))
    )
    log = TrialLog(path)

    assert [one.number for one in log] == [0]
    assert path.read_bytes() == first


def test_the_best_is_the_first_of_equals_in_whatever_order_they_came(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = TrialLog(path)
    found = []
    for number, fitness in [(3, 50.0), (1, 50.0), (2, 50.0), (0, 40.0), (4, 60.0)]:
        log.add(trial(number, fitness))
        assert log.best is not None
        found.append(log.best.number)
    assert found == [3, 1, 1, 1, 4]
    assert TrialLog(path).best == log.best


def test_a_plan_is_known_by_the_trial_that_evaluated_it(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = TrialLog(path)
    log.add(trial(0, 10.0, "same"))
    log.add(trial(1, 10.0, "same", repeats=0, epochs=0))

    for opened in (log, TrialLog(path)):
        known = opened.of_plan("same")
        assert known is not None
        assert known.number == 0
    assert log.of_plan("other") is None


def test_several_are_added_at_once_and_images_come_back(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    trials = [trial(0, 10.0, images=500, stopped=True), trial(1, 20.0, images=1000), trial(2, 5.0)]
    log = TrialLog(path)
    log.add(*trials)
    log.add()

    assert log.best == trials[1]
    assert list(TrialLog(path)) == trials


def test_lines_of_before_images_were_counted_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    old = {name: value for name, value in asdict(trial(0, 10.0)).items() if name != "images"}
    path.write_text(json.dumps(old) + "\n")

    assert list(TrialLog(path)) == [trial(0, 10.0)]
