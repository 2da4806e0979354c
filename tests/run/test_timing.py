"""Runs with a budget in latency and round_to auto, with a clock that goes by a formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fastprune as fp
from fastprune.config import make_config
from fastprune.errors import BudgetError
from fastprune.run import pipeline
from fastprune.testing.latency import FormulaClock

GIVEN: dict[str, Any] = {
    "model": {"name": "resnet20_cifar", "options": {"depth": 8}},
    "data": {"name": "digits", "train_limit": 64, "test_limit": 32, "batch_size": 32},
    "baseline": {"epochs": 1, "lr": 0.05},
    "method": "one_shot",
    "prune": {"budget": {"latency_ms": 0.7}},
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0, "batch_size": 4},
}
CLOCKS = ("fastprune.run.staged.DeviceClock", "fastprune.methods._solving.DeviceClock")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FormulaClock]:
    """The clocks that were made."""
    found: list[FormulaClock] = []

    def clock(options: Any, device: torch.device) -> FormulaClock:
        found.append(FormulaClock(options.batch_size, step=8))
        return found[-1]

    for name in CLOCKS:
        monkeypatch.setattr(name, clock)
    return found


def run(given: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    return pipeline.run(make_config(given), folder, quiet=True, **options)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "one_shot"},
        {"name": "one_shot", "criterion": ["l1", "l2"], "evaluator": "shared"},
        {"name": "slimming", "start": "baseline", "strength": 0.01},
        {"name": "papm"},
        {"name": "apoz"},
    ],
    ids=["one_shot", "criteria", "slimming", "papm", "apoz"],
)
def test_every_method_that_solves_a_budget_meets_one_in_latency(
    method: dict[str, Any], tmp_path: Path, made: list[FormulaClock]
) -> None:
    given = GIVEN | {"method": method}
    if "criterion" in method:
        given = given | {"data": GIVEN["data"] | {"validation": 0.5}}
    report = run(given, tmp_path)
    facts = report["notes"]["latency"]
    (line,) = report["budget"]

    assert line == {
        "metric": "latency_ms",
        "limit": facts["limit_ms"],
        "reached": facts["reached_ms"],
    }
    assert facts["held"]
    assert facts["batch_size"] == 4
    small = fp.load(tmp_path)
    whole = FormulaClock(4, step=8).whole(small, torch.zeros(1, 3, 32, 32))
    assert facts["reached_ms"] == pytest.approx(whole, rel=1e-3)
    assert (tmp_path / "latency_table.json").is_file()


def test_a_run_that_goes_on_is_the_run_that_did_not_stop(
    tmp_path: Path, made: list[FormulaClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = GIVEN | {"prune": {"budget": {"latency_ms": 0.8}, "round_to": "auto"}}
    whole = run(given, tmp_path / "whole")
    with monkeypatch.context() as patch:
        # Ends in the plan's stage, once everything but the first plan was measured.
        patch.setattr("fastprune.latency.solving._tried", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(given, tmp_path / "stopped")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    made.clear()
    again = run(given, tmp_path / "stopped")

    assert sum(clock.layers for clock in made) == 0
    for name in ("notes", "budget", "widths", "accuracy"):
        assert again[name] == whole[name]
    for name in ("plan.json", "latency_table.json", "pruned.safetensors"):
        files = [tmp_path / run / name for run in ("whole", "stopped")]
        assert files[0].read_bytes() == files[1].read_bytes()
    made.clear()
    assert run(given, tmp_path / "stopped") == again
    assert made == [] or not any(clock.measured for clock in made)


def test_round_to_auto_is_what_the_device_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in CLOCKS:
        monkeypatch.setattr(name, lambda options, device: FormulaClock(1, step=16))
    given = GIVEN | {"prune": {"budget": {"macs": 0.5}, "round_to": "auto"}}
    report = pipeline.run(make_config(given), tmp_path)

    assert report["notes"]["round_to"] == 8
    assert all(width % 8 == 0 for width in report["widths"].values())
    assert "round_to auto is 8: layers here like multiples of 16" in capsys.readouterr().err
    assert json.loads((tmp_path / "work/plan/alignment.json").read_text())["liked"] == 16


def test_a_limit_out_of_reach_is_refused_before_any_training(
    tmp_path: Path, made: list[FormulaClock]
) -> None:
    given = GIVEN | {"prune": {"budget": {"latency_ms": 0.01}}}
    with pytest.raises(BudgetError, match=r"prune\.budget\.latency_ms: 0.01 .*cannot be"):
        run(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["latency_ms", "macs"])
def test_what_a_table_is_of_belongs_to_the_plan(
    metric: str, tmp_path: Path, made: list[FormulaClock]
) -> None:
    inputs = []
    for size in (4, 8):
        latency = GIVEN["latency"] | {"batch_size": size}
        given = GIVEN | {"prune": {"budget": {metric: 0.7}}, "latency": latency}
        run(given, tmp_path / str(size), until="plan")
        stage = tmp_path / str(size) / "stages" / "plan.json"
        inputs.append(json.loads(stage.read_text())["inputs"])

    assert (inputs[0] != inputs[1]) == (metric == "latency_ms")
