"""Clocks that jump by years while a run goes on, and files from the future."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mutations import Assets
from remains import differences
from tiny_runs import CONFIGS

from fastprune.config import make_config
from fastprune.run import pipeline
from fastprune.run.stages import STAGES

YEAR = 365 * 86400


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is up to ten years before or after the truth."""
    draw = random.Random(0)

    def false(true: Callable[[], float], scale: int) -> Callable[[], float]:
        return lambda: type(true())(true() + scale * draw.uniform(-10, 10) * YEAR)

    monkeypatch.setattr(time, "time", false(time.time, 1))
    monkeypatch.setattr(time, "time_ns", false(time.time_ns, 10**9))


def stamp(folder: Path, years: float) -> None:
    """Files that were last changed so many years from now."""
    when = time.monotonic() + years * YEAR
    for file in folder.rglob("*"):
        os.utime(file, (when, when))


@pytest.mark.usefixtures("jumping")
@pytest.mark.parametrize("name", ["one_shot", "abc, trained"])
def test_no_clock_decides_what_a_run_comes_to(
    name: str, assets: Assets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = make_config(CONFIGS[name]), tmp_path / "run"
    for number, stage in enumerate(STAGES):
        pipeline.run(config, run, until=stage)
        # Now of the future, now of the past, and the later stage's not always the later ones.
        stamp(run, (-1) ** number * 80 + 60)
    whole = assets.run
    if name != "one_shot":
        whole = tmp_path / "whole"
        pipeline.run(config, whole, quiet=True)
    assert differences(run, whole) == []

    capsys.readouterr()
    pipeline.run(config, run)
    said = capsys.readouterr().err
    assert [stage for stage in STAGES if f"{stage}: done before" in said] == list(STAGES)
