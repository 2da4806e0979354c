"""The ImageNet configuration, cut short, on a small folder laid out as ImageNet is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fastprune as fp
from fastprune.cli import app

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = [
    "data.image_size=64",
    "data.batch_size=4",
    "data.validation=4",
    "data.workers=0",
    "model.weights=null",
    "baseline.epochs=1",
    "method.food_number=2",
    "method.max_cycle=1",
    "method.calfitness_epoch=1",
    "finetune.epochs=1",
    "finetune.warmup_epochs=0",
    "finetune.milestones=[0.5]",
    "device=cpu",
    "threads=1",
    "latency.repeats=0",
]


def run(root: Path, folder: Path, name: str, *more: str) -> dict[str, Any]:
    given = [str(CONFIGS / f"{name}.yaml"), f"data.root={root}", *SHORT, *more]
    result = CliRunner().invoke(
        app, ["run", *given, "--out", str(folder), "--quiet", "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def hold(report: dict[str, Any], folder: Path, classes: list[str], units: int) -> None:
    for stage in ("baseline", "plan", "prune", "finetune", "report"):
        assert (folder / "stages" / f"{stage}.json").is_file()
    for file in ("trials.jsonl", "search.png", "channels.png", "report.json"):
        assert (folder / file).stat().st_size
    notes = report["notes"]
    assert len(notes["code"]) == units
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert notes["candidates"] == len(trials) >= 6
    small = fp.load(folder)
    assert sum(p.numel() for p in small.parameters()) == report["cost"]["pruned"]["params"]
    assert json.loads((folder / "pruned.json").read_text())["classes"] == classes


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Two classes of JPEGs of several sizes: stripes that lie or stand."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for lies, name in enumerate(("n01440764", "n01443537")):
            (tmp_path / "drawn" / part / name).mkdir(parents=True)
            for i in range(count):
                height, width = (int(n) for n in generator.integers(40, 80, 2))
                across = np.arange(height)[:, None] if lies else np.arange(width)[None]
                pixels = np.broadcast_to(across // 4 % 2 * 200, (height, width))[..., None]
                pixels = pixels + generator.integers(0, 56, (height, width, 3))
                file = tmp_path / "drawn" / part / name / f"{name}_{i}.JPEG"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    return tmp_path / "drawn"


def test_a_configuration_for_imagenet_runs_on_drawn_images(drawn: Path, tmp_path: Path) -> None:
    report = run(drawn, tmp_path / "run", "abc_resnet18_imagenet")

    hold(report, tmp_path / "run", ["n01440764", "n01443537"], 8)


def test_abc_resnet50_runs_on_real_images(fastprune_data: Path, tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 4)):
        for name in ("ants", "bees"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            there = sorted((fastprune_data / "hymenoptera-256" / part / name).glob("*.jpg"))
            for file in there[:count]:
                shutil.copy(file, tmp_path / "images" / part / name)
    report = run(tmp_path / "images", tmp_path / "run", "abc_resnet50_imagenet")

    hold(report, tmp_path / "run", ["ants", "bees"], 16)
    # Stopped and started again it does nothing more.
    assert run(tmp_path / "images", tmp_path / "run", "abc_resnet50_imagenet") == report
