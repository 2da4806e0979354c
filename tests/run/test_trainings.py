from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastprune.errors import CheckpointError
from fastprune.run.paths import RunPaths
from fastprune.run.trainings import Epoch, read_trainings

LINE = {
    "epoch": 1,
    "train_loss": 2.0,
    "train_top1": 50.0,
    "validation_loss": None,
    "validation_top1": None,
    "learning_rate": 0.1,
}


def put(run: Path, folder: str, *lines: str) -> None:
    (run / "work" / folder).mkdir(parents=True, exist_ok=True)
    (run / "work" / folder / "metrics.jsonl").write_text("".join(lines))


def test_trainings_come_in_their_order_without_candidates(tmp_path: Path) -> None:
    line = json.dumps(LINE | {"seconds": 1.0}) + "\n"
    for folder in ("finetune", "plan/state-10", "plan/state-2/retry", "plan/state-2", "baseline"):
        put(tmp_path, folder, line)
    put(tmp_path, "plan/candidates/0123", line)
    put(tmp_path, "plan/empty")
    found = read_trainings(RunPaths(tmp_path))

    assert list(found) == ["baseline", "state-2", "state-2 retry", "state-10", "finetune"]
    assert found["baseline"] == (Epoch(1, 2.0, 50.0, None, None, 0.1),)


def test_the_part_of_a_line_at_the_end_is_left_out_and_a_damaged_line_told(tmp_path: Path) -> None:
    line = json.dumps(LINE)
    put(tmp_path, "baseline", line + "\n" + line[:20])
    assert len(read_trainings(RunPaths(tmp_path))["baseline"]) == 1

    put(tmp_path, "finetune", line + "\n", line[:20] + "\n")
    with pytest.raises(CheckpointError, match=r"finetune/metrics\.jsonl: line 2: not an epoch"):
        read_trainings(RunPaths(tmp_path))


def test_real_runs_have_their_trainings(finished: Path) -> None:
    names = {
        "gradual": ["baseline", "round-1", "finetune"],
        "slimming": ["sparse", "finetune"],
        "colony": ["baseline", "finetune"],
    }
    for name, expected in names.items():
        found = read_trainings(RunPaths(finished / name))
        assert list(found) == expected
        lines = (finished / name / "work/finetune/metrics.jsonl").read_text().splitlines()
        assert [epoch.train_loss for epoch in found["finetune"]] == [
            json.loads(line)["train_loss"] for line in lines
        ]
