from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastprune import __version__, doctor, ops


def test_report_is_json_and_lines_say_it() -> None:
    found = doctor.report()

    assert json.loads(json.dumps(found)) == found
    assert found["fastprune"]["version"] == __version__
    assert found["packages"]["torch"]["version"]
    text = "\n".join(doctor.lines(found))
    for name in ("fastprune", "python", "torch", "CPU", "CUDA", "fastprune._C", "timm", "DALI"):
        assert f"{name} " in text


def test_a_torchvision_of_another_torch_is_named_with_its_mend(tmp_path: Path) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from fastprune import doctor; print(*doctor.lines(), sep='\\n')"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert "problem: torchvision: operator torchvision::nms does not exist" in done.stdout
    assert f"mend it with: {doctor.MEND_TORCHVISION}" in done.stdout
    assert "BROKEN" in done.stdout


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "never built"),
        ({"extension": False, "reason": "command 'g++' failed"}, "command 'g++' failed"),
        ({"extension": True, "reason": None}, "does not load"),
    ],
)
def test_a_missing_extension_has_its_reason(
    record: dict[str, object] | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if record is not None:
        (tmp_path / "_build.json").write_text(json.dumps(record))
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "doctor.py"))
    monkeypatch.setitem(sys.modules, "fastprune._C", None)

    found = doctor.report()

    assert not found["extension"]["built"]
    assert reason in found["extension"]["reason"]
    assert any(line.startswith("fastprune._C") and reason in line for line in doctor.lines(found))


def test_optional_packages_name_the_extra_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(doctor.OPTIONAL, "absent", (("no-such-distribution",), ("timm",)))

    found = doctor.report()

    assert found["optional"]["absent"]["version"] is None
    assert found["optional"]["absent"]["distribution"] is None
    assert any("pip install 'fastprune[timm]'" in line for line in doctor.lines(found))


@pytest.mark.parametrize("cuda", ["cuda130", "cuda120", "cuda110"])
def test_each_wheel_of_dali_is_found(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == f"nvidia-dali-{cuda}":
            return "1.2.3"
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    assert any(
        " ".join(line.split()) == f"DALI 1.2.3 of nvidia-dali-{cuda}" for line in doctor.lines()
    )


def test_without_dali_all_its_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    (line,) = (line for line in doctor.lines() if line.startswith("DALI "))
    assert "'fastprune[dali]' or 'fastprune[dali-cuda120]' or 'fastprune[dali-cuda110]'" in line


def test_own_environment_variables_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTPRUNE_EXAMPLE", "seen")

    assert doctor.report()["environment"]["FASTPRUNE_EXAMPLE"] == "seen"


def test_each_op_says_what_runs_on_each_device() -> None:
    found = doctor.report()["ops"]

    assert sorted(found) == sorted(ops.registered())
    for name, op in ops.registered().items():
        for device in ("cpu", "cuda"):
            available = dict(op.availability(device))
            assert found[name][device]["implementations"] == available
            assert available[found[name][device]["runs"]] is None
        assert found[name]["cpu"]["no_device"] is None
    if not torch.cuda.is_available():
        assert found["zero_count"]["cuda"]["no_device"]


def test_lines_of_ops_name_what_runs_and_why_not_the_rest() -> None:
    found = doctor.report()
    found["ops"] = {
        "example": {
            "cpu": {
                "runs": "numba",
                "asked": None,
                "implementations": {"cpp": "no compiler", "numba": None, "reference": None},
                "no_device": None,
            },
            "cuda": {
                "runs": None,
                "asked": "numba",
                "implementations": {"triton": None, "reference": None},
                "no_device": "no driver",
            },
        }
    }

    rows = [" ".join(line.split()) for line in doctor.lines(found) if line.startswith("example")]

    assert rows == [
        "example cpu: numba, then reference; not cpp: no compiler",
        "example cuda: no device; with one nothing, since FASTPRUNE_BACKEND=numba",
    ]


def run_doctor(before: str = "", **environment: str) -> dict[str, Any]:
    """A report of a fresh process, after a few lines of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, json\n{before}\nfrom fastprune import doctor\n"
            "print(json.dumps(doctor.report()))",
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_ops_without_extension_and_without_triton() -> None:
    gone = "sys.modules.update({'fastprune._C': None, 'triton': None, 'numba': None})"

    found = run_doctor(gone)["ops"]["zero_count"]

    assert found["cpu"]["runs"] == "reference"
    assert "fastprune._C does not load" in found["cpu"]["implementations"]["cpp"]
    assert "numba" in found["cpu"]["implementations"]["numba"]
    assert found["cuda"]["runs"] == "reference"
    assert "triton" in found["cuda"]["implementations"]["triton"]


def test_an_unknown_backend_is_a_problem_with_its_name() -> None:
    found = run_doctor(FASTPRUNE_BACKEND="tritn")

    assert found["ops"] == {}
    assert found["problems"] == [
        "ops: FASTPRUNE_BACKEND: unknown name 'tritn'; did you mean 'triton'?"
    ]


def test_a_backend_asked_for_is_what_runs() -> None:
    found = run_doctor(FASTPRUNE_BACKEND="numba")["ops"]["zero_count"]

    assert found["cpu"]["runs"] == "numba"
    assert found["cuda"]["runs"] is None
