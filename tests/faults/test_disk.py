"""Runs on a disk that is full or cannot be written to, and in a directory that vanishes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import Disk
from mutations import Assets
from remains import differences
from typer.testing import CliRunner

from fastprune.cli import app
from fastprune.files import TEMPORARY
from fastprune.run.directory import RunDirectory
from fastprune.run.stages import STAGES


def stage_of(run: Path) -> str:
    """The one that is not finished."""
    return next(stage for stage in STAGES if not (run / f"stages/{stage}.json").is_file())


def test_on_a_full_disk_a_run_says_so_and_goes_on_once_there_is_room(
    disk: Disk, assets: Assets, config: Path, refusal: Callable[..., str]
) -> None:
    run, words = disk.folder / "run", ("run", config, "--out", disk.folder / "run", "--quiet")
    full: Counter[str] = Counter()
    for pages in range(1, 200, 4):
        disk.mount("remount", f"size={4 * pages}k")
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exit_code == 0:
            break
        said = refusal(*words)
        assert said.startswith(str(run))
        assert said.endswith("No space left on device")
        assert not list(disk.folder.rglob(f"{TEMPORARY}*"))
        if not run.exists():
            # Where nothing can be kept, nothing is left.
            assert not list(disk.folder.iterdir())
            full["before"] += 1
            continue
        full[stage_of(run)] += 1

    assert full.total() >= 6
    assert {"before", "baseline", "plan", "finetune"} <= set(full)
    assert differences(run, assets.run) == []


def test_a_disk_that_cannot_be_written_to_is_said(
    disk: Disk, assets: Assets, config: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    run, out = disk.folder / "run", disk.folder / "out"
    disk.mount("remount", "size=8m")
    shutil.copytree(assets.run, run)
    disk.mount("remount", "ro")
    for words in (
        ("run", config, "--out", run),
        ("run", config, "--out", out),
        ("report", run),
        ("plot", run),
        ("group", run),
        ("compare", run, "--out", out),
        ("export", run, "--format", "safetensors"),
        ("latency", run),
        ("fuse", run, run, "--out", out),
    ):
        assert refusal(*words).endswith("Read-only file system"), words
    # What only reads it can be done, and what is written elsewhere.
    for words in (
        ("evaluate", run),
        ("report", run, "--out", tmp_path / "report.html"),
        ("compare", run, "--out", tmp_path),
    ):
        assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0, words


@pytest.mark.parametrize("stage", STAGES)
def test_a_directory_that_vanishes_is_said(
    stage: str,
    assets: Assets,
    config: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    begin = RunDirectory.work

    def vanishing(directory: RunDirectory, now: str, inputs: str) -> Path:
        folder = begin(directory, now, inputs)
        if now == stage:
            shutil.rmtree(run)
        return folder

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "work", vanishing)
        assert refusal("run", config, "--out", run, "--quiet").startswith(str(run))
    if stage in ("baseline", "finetune"):
        result = CliRunner().invoke(app, ["run", str(config), "--out", str(run), "--quiet"])
        assert result.exit_code == 0, result.output
        assert differences(run, assets.run) == []
