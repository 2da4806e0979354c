"""Runs on a folder of images that has broken files, and that changes between two starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from fastprune.config import make_config
from fastprune.errors import DataError
from fastprune.run import pipeline
from fastprune.run.tables import print_report


class Tiny(nn.Sequential):
    """Two convolutions of images of any size."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )


def config(root: Path, **data: object) -> dict[str, Any]:
    train = {"epochs": 1, "lr": 0.05}
    return {
        "model": {"name": f"{__file__}:Tiny"},
        "data": {
            "name": "imagefolder",
            "root": str(root),
            "image_size": 16,
            "batch_size": 8,
            "validation": 0,
            "workers": 0,
            **data,
        },
        "baseline": train,
        "method": {"name": "one_shot"},
        "prune": {"budget": {"macs": 0.6}},
        "finetune": train,
        "threads": 1,
        "device": "cpu",
        "latency": {"repeats": 0},
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6)):
        for name in ("ants", "bees"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                file = tmp_path / "images" / part / name / f"{i:02}.png"
                Image.fromarray(pixels).save(file)
    for broken in ("train/ants/03.png", "val/bees/05.png"):
        file = tmp_path / "images" / broken
        file.write_bytes(file.read_bytes()[:600])
    return tmp_path / "images"


def run(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return pipeline.run(make_config(given), folder, quiet=True)


def test_a_run_counts_and_names_what_it_left_out(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"03\.png: not a readable image: .*max_bad_images"):
        run(config(root), tmp_path / "strict")
    report = run(config(root, max_bad_images=1), tmp_path / "run")
    (warning,) = (text for text in report["warnings"] if "could not be read" in text)
    assert warning.startswith("2 image files could not be read and were left out: ")
    assert "ants/03.png" in warning
    assert "bees/05.png" in warning


def test_files_of_any_name_are_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(b"\xff[red].png")
    (root / "val" / "bees" / "05.png").rename(root / "val" / "bees" / odd)
    given = config(root, max_bad_images=1)
    run(given, tmp_path / "run")
    # Out of the files of its stages.
    report = run(given, tmp_path / "run")
    (warning,) = (text for text in report["warnings"] if "could not be read" in text)
    assert f"bees/{odd}" in warning
    shown = {**report, "warnings": [warning.replace("\udcff", "")]}
    print_report(shown)
    assert "bees/[red].png" in capsys.readouterr().out
    # The whole command line, where standard output takes UTF-8 alone.
    script = "import sys; from fastprune import cli; cli.app = lambda **_: print(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; from fastprune.__main__ import main; main()", odd],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"\\udcff[red].png\n"


def test_a_run_goes_on_only_with_the_images_it_began_with(root: Path, tmp_path: Path) -> None:
    given = config(root, max_bad_images=1)
    run(given, tmp_path / "run")
    (tmp_path / "run" / "stages" / "finetune.json").unlink()
    os.utime(root / "train" / "ants" / "00.png", ns=(0, 0))
    assert run(given, tmp_path / "run")["accuracy"]["finetuned"] is not None
    (tmp_path / "run" / "stages" / "finetune.json").unlink()
    Image.new("RGB", (20, 20)).save(root / "val" / "ants" / "99.png")
    with pytest.raises(DataError, match="the test images changed since the run began: 12 files"):
        run(given, tmp_path / "run")
    files = json.loads((tmp_path / "run" / "images.json").read_text())
    assert {part: listing["files"] for part, listing in files.items()} == {"train": 24, "test": 12}
