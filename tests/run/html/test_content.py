"""What is read of a run directory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastprune.errors import CheckpointError, ConfigError
from fastprune.files import sha256_of
from fastprune.run.html.content import read_run
from fastprune.run.paths import RunPaths
from fastprune.run.stages import stored_record, write_record


def copied(run: Path, to: Path, until: str | None = None) -> Path:
    """A copy of a finished run as it was before a stage ended."""
    shutil.copytree(run, to)
    stages = ["baseline", "plan", "prune", "finetune", "report"]
    for stage in stages[stages.index(until) :] if until else ():
        RunPaths(to).record_file(stage).unlink()
    return to


def test_a_finished_run_gives_what_its_report_has(finished: Path) -> None:
    run = read_run(finished / "gradual")
    report = json.loads((finished / "gradual/report.json").read_text())

    assert run.following is None
    assert run.report == report
    assert run.cost == (report["cost"]["unpruned"], report["cost"]["pruned"])
    assert run.accuracy == {k: v for k, v in report["accuracy"].items() if v is not None}
    assert run.widths == report["widths"]
    assert run.command == report["command"]
    assert run.compared[0].macs == report["cost"]["pruned"]["macs"]
    assert list(run.records) == ["baseline", "plan", "prune", "finetune", "report"]


@pytest.mark.parametrize("following", ["plan", "prune", "finetune", "report"])
def test_an_unfinished_run_gives_what_stands(
    finished: Path, tmp_path: Path, following: str
) -> None:
    path = copied(finished / "gradual", tmp_path / "run", following)
    run = read_run(path)

    assert run.following == following
    assert run.report is None
    assert run.command == f"fastprune run {path}/config.yaml --out {path}"
    assert bool(run.plan) == (following != "plan")
    assert bool(run.cost[1]) == (following in ("finetune", "report"))
    assert run.cost[0]["macs"] == 87632
    assert ("finetuned" in run.accuracy) == (following == "report")


def test_a_stage_of_what_was_replaced_since_does_not_stand(finished: Path, tmp_path: Path) -> None:
    path = copied(finished / "gradual", tmp_path / "run")
    file = RunPaths(path).record_file("plan")
    record = stored_record(file)
    assert record is not None
    write_record(file, replace(record, inputs="of another configuration"))

    assert read_run(path).following == "prune"


def test_a_training_under_way_is_enough(finished: Path, tmp_path: Path) -> None:
    run = read_run(copied(finished / "gradual", tmp_path / "run", "baseline"))

    assert run.following == "baseline"
    assert run.graph is None
    assert run.cost == ({}, {})
    assert len(run.trainings["baseline"]) == 2


def test_sparse_training_gives_its_scales(finished: Path) -> None:
    (line,) = read_run(finished / "slimming").scales

    assert line.epoch == 1
    assert line.penalty > 0


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("report.json", "{}", r"report\.json: damaged"),
        ("plan.json", "{}", r"plan\.json: missing or damaged"),
        ("config.yaml", "[", r"config\.yaml: unreadable"),
        ("trials.jsonl", "{}\n", r"trials\.jsonl: line 1: not a trial"),
        ("work/plan/scales.jsonl", "{}\n", r"scales\.jsonl: line 1: not the scales"),
        ("work/baseline/metrics.jsonl", "{}\n", r"metrics\.jsonl: line 1: not an epoch"),
    ],
)
def test_what_is_damaged_is_named(
    finished: Path, tmp_path: Path, file: str, content: str, expected: str
) -> None:
    path = copied(finished / "colony", tmp_path / "run")
    (path / file).write_text(content)

    with pytest.raises((ConfigError, CheckpointError), match=expected):
        read_run(path)


@pytest.mark.parametrize("missing", ["narrowest", "cost"])
def test_a_report_of_another_version_is_said_to_be_one(
    finished: Path, tmp_path: Path, missing: str
) -> None:
    paths = RunPaths(copied(finished / "gradual", tmp_path / "run"))
    report = json.loads(paths.report.read_text())
    del report[missing]
    paths.report.write_text(json.dumps(report))
    record = stored_record(paths.record_file("report"))
    assert record is not None
    sums = {paths.report.name: sha256_of(paths.report)}
    write_record(paths.record_file("report"), replace(record, files=sums))

    with pytest.raises(
        ConfigError, match=f"of another version of fastprune: it has no '{missing}"
    ):
        read_run(paths.path)


def test_what_is_for_people_alone_may_be_missing(finished: Path, tmp_path: Path) -> None:
    path = copied(finished / "gradual", tmp_path / "run")
    (path / "environment.json").write_text("{")

    assert read_run(path).environment == {}


def test_what_is_no_run_or_holds_nothing_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a run directory"):
        read_run(tmp_path)
    shutil.copy(finished / "gradual/config.yaml", tmp_path)
    with pytest.raises(ConfigError, match="holds nothing to report yet, not one epoch"):
        read_run(tmp_path)
