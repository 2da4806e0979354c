"""A run for some of the classes, and what it leaves."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fastprune.config import make_config
from fastprune.run import pipeline
from fastprune.run.classes import write_classes
from fastprune.training import Metrics

GIVEN: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {
        "name": "digits",
        "train_limit": 96,
        "test_limit": 40,
        "batch_size": 32,
        "validation": 40,
    },
    "baseline": {"epochs": 2, "lr": 0.05},
    "method": {"name": "papm", "params_reduction": 0.5, "classes": [3, 5]},
    "prune": {"min_channels": 2},
    "finetune": {"epochs": 3, "lr": 0.05, "checkpoint_every": 0},
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}


def test_a_run_tells_every_class_and_resumes_exactly(
    tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    report = pipeline.run(make_config(GIVEN), tmp_path / "whole")
    said = capsys.readouterr().err

    (limit,) = report["budget"]
    assert limit["metric"] == "params"
    assert limit["reached"] <= limit["limit"] == 0.5 * report["cost"]["unpruned"]["params"]
    assert report["notes"]["classes"] == [3, 5]
    with (tmp_path / "whole/classes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == [*map(str, range(10)), "focus", "overall"]
    assert [row["in_focus"] for row in rows[:10]] == list("0001010000")
    for name, stage in (("unpruned", "baseline"), ("pruned", "finetuned")):
        of = [float(row[name]) for row in rows]
        assert of[10] == pytest.approx((of[3] + of[5]) / 2, abs=1e-3)
        assert of[11] == pytest.approx(report["accuracy"][stage]["top1"], abs=1e-3)
        assert f" {of[10]:.2f} % {name}" in said.partition("classes in focus: test top-1")[2]
    epochs = [
        json.loads(line)
        for line in (tmp_path / "whole/work/finetune/metrics.jsonl").read_text().splitlines()
    ]
    assert all(isinstance(epoch["validation_focus"], float) for epoch in epochs)

    stages = [f"stage {name}" for name in ("baseline", "plan", "prune", "finetune", "report")]
    for event, count in [*((stage, 1) for stage in stages[:3]), ("step", 4), ("step", 3)]:
        assert server.run(GIVEN, tmp_path / "killed", event, count) == -signal.SIGKILL, event
    for stage in stages[3:]:
        assert server.run(GIVEN, tmp_path / "killed", stage, 1) == -signal.SIGKILL, stage
    assert server.run(GIVEN, tmp_path / "killed") == 0
    for name in ("pruned.safetensors", "plan.json", "classes.csv"):
        whole, killed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), name


def test_a_class_without_images_has_an_empty_field(tmp_path: Path) -> None:
    metrics = Metrics(top1=50, top5=100, loss=1, images=4, by_class=(75.0, None, 25.0))
    write_classes(tmp_path / "classes.csv", {"net": metrics}, ("a", "b, c", "d"), (1, 2))

    assert (tmp_path / "classes.csv").read_text().splitlines() == [
        "label,class,in_focus,net",
        "0,a,0,75.0000",
        '1,"b, c",1,',
        "2,d,1,25.0000",
        "focus,,1,25.0000",
        "overall,,,50.0000",
    ]


def test_a_class_may_be_called_what_a_folder_can_be(tmp_path: Path) -> None:
    metrics = Metrics(top1=50, top5=100, loss=1, images=4, by_class=(75.0, 25.0))
    name = os.fsdecode(b"caf\xe9")
    write_classes(tmp_path / "classes.csv", {"net": metrics}, (name, "d"), (1,))

    assert (tmp_path / "classes.csv").read_text().splitlines()[1] == r"0,caf\udce9,0,75.0000"
