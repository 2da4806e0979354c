"""The steps of benchmarks/gpu_check.py, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gpu_check
import pytest
from gpu_check import Step


def python(name: str, code: str, *, limit: float = 60, least: float = 1) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, least)


def test_the_plan_fits_its_budget(tmp_path: Path) -> None:
    steps = gpu_check.plan(tmp_path, tmp_path / "site", None, {})

    assert [step.name for step in steps] == [
        "wheels",
        "build",
        "build-any",
        "doctor",
        "tests",
        "memcheck",
        "racecheck",
        "benchmarks",
    ]
    assert sum(step.least for step in steps) < gpu_check.BUDGET < 480
    assert steps[2].instead_of == "build"
    assert all(step.least <= step.limit for step in steps)
    assert steps[0].skip == "no folder of wheels"


def test_what_is_not_installed_is_named_where_it_is_missed(tmp_path: Path) -> None:
    absent = {"pytest_benchmark": "benchmarks", "xdist": "tests side by side"}
    steps = {s.name: s for s in gpu_check.plan(tmp_path, tmp_path / "site", None, absent)}

    assert steps["benchmarks"].skip in (
        "not installed: pytest_benchmark",
        "there is no benchmarks/ops",
    )
    assert steps["tests"].skip is None
    assert "-n" not in steps["tests"].command


def test_wheels_are_installed_first(tmp_path: Path) -> None:
    (tmp_path / "example-1-py3-none-any.whl").touch()

    step = gpu_check.plan(tmp_path, tmp_path / "site", tmp_path, {})[0]

    assert step.skip is None
    assert step.command[-1].endswith("example-1-py3-none-any.whl")
    assert "--no-index" in step.command


def test_a_slow_step_leaves_the_later_ones_their_least() -> None:
    steps = [Step("a", [], 100, 10), Step("b", [], 50, 20), Step("c", [], 50, 30, skip="no")]

    assert gpu_check.allowed(steps, 0, 500) == 100
    assert gpu_check.allowed(steps, 0, 60) == 40
    assert gpu_check.allowed(steps, 1, 30) == 30
    assert gpu_check.allowed(steps, 1, -5) == 0


def test_a_step_tells_how_it_ended(tmp_path: Path) -> None:
    log = tmp_path / "x.log"

    passed = gpu_check.run(python("x", "print('all well')"), 60, log)
    failed = gpu_check.run(python("x", "raise SystemExit('broken')"), 60, log)
    skipped = gpu_check.run(Step("x", [], 1, 1, skip="no reason"), 60, log)

    assert (passed.status, passed.said) == ("passed", "all well")
    assert (failed.status, failed.said) == ("failed", "broken")
    assert (skipped.status, skipped.said) == ("skipped", "no reason")


def test_a_step_out_of_time_is_ended_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)"
    )
    start = time.monotonic()

    found = gpu_check.run(python("x", code), 2, tmp_path / "x.log")

    assert found.status == "out of time"
    assert found.said == "begun"
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("broken", [False, True])
def test_a_failing_step_does_not_stop_the_later_ones(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "facts", lambda absent: {"devices": []})
    monkeypatch.setattr(gpu_check, "RECORDS", tmp_path / "records")
    (tmp_path / "records").mkdir()
    record = tmp_path / "records" / "gpu_example.json"
    steps = [
        python("first", "raise SystemExit(4)" if broken else ""),
        replace(python("second", ""), instead_of="first"),
        python("benchmarks", f"open({str(record)!r}, 'w').write('{{\"ratio\": 2}}')"),
    ]

    code = gpu_check.check(steps, tmp_path / "out", tmp_path / "site", {}, anyway=True)

    assert code == int(broken)
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    ended = {s["name"]: s["status"] for s in found["steps"]}
    assert ended.pop("first") == ("failed" if broken else "passed")
    assert ended.pop("second", None) == ("passed" if broken else None)
    assert ended == {"benchmarks": "passed"}
    assert found["records"] == {"gpu_example.json": {"ratio": 2}}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "gpu_check.json",
        "gpu_check.log",
    ]

    record.unlink()
    assert gpu_check.unpack(tmp_path / "out" / "gpu_check.json") == [record]
    assert json.loads(record.read_text()) == {"ratio": 2}


def test_without_a_device_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "facts", lambda absent: {"devices": []})

    assert gpu_check.check([], tmp_path, tmp_path / "site", {}, anyway=False) == 1
    assert not (tmp_path / "gpu_check.json").exists()


def test_a_dry_run_prints_the_commands(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, gpu_check.__file__, "--dry-run", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert "-m pip install" in done.stdout
    assert not (tmp_path / "out").exists()
