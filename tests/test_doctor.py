from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastprune import __version__, doctor


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
    monkeypatch.setitem(doctor.OPTIONAL, "absent", (("no-such-distribution",), "timm"))

    found = doctor.report()

    assert found["optional"]["absent"]["version"] is None
    assert any("pip install 'fastprune[timm]'" in line for line in doctor.lines(found))


def test_own_environment_variables_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTPRUNE_EXAMPLE", "seen")

    assert doctor.report()["environment"]["FASTPRUNE_EXAMPLE"] == "seen"
