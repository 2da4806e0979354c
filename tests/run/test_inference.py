"""Split inference of a fusion: the same accuracy, and a table of what each part takes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from fastprune import artifact, models
from fastprune.data import DataOptions
from fastprune.errors import ArtifactError, ConfigError
from fastprune.graph import PruningPlan
from fastprune.run.fusion import fuse
from fastprune.run.fusion_file import load_fusion
from fastprune.run.inference import PartRow, infer
from fastprune.training.fusion import FusionOptions

DATA = DataOptions(train_limit=100, test_limit=70, validation=60, eval_batch_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fusion of two networks."""
    where = tmp_path_factory.mktemp("inference")
    torch.set_num_threads(1)
    for number in range(2):
        torch.manual_seed(number)
        artifact.save(
            where / f"expert{number}",
            models.build("resnet20_cifar", num_classes=10, depth=8),
            plan=PruningPlan({}),
            architecture="resnet20_cifar",
            options={"depth": 8},
            num_classes=10,
        )
    experts = [where / f"expert{number}" for number in range(2)]
    options = FusionOptions(epochs=2, lr=0.01)
    fuse(experts, where / "fused", options=options, data_options=DATA, device="cpu")
    return where


def test_accuracy_is_that_of_fusing_and_every_part_is_measured(
    folder: Path, tmp_path: Path
) -> None:
    unpruned = models.build("resnet20_cifar", num_classes=10, depth=8).train()
    threads = torch.get_num_threads()
    # Batches are those of fusing, whatever is said here.
    images = DATA.model_copy(update={"eval_batch_size": 7, "batch_size": 9})

    found = infer(
        folder / "fused",
        data_options=images,
        repeats=4,
        batches=(1, 8),
        unpruned=unpruned,
        out=tmp_path / "there",
    )

    assert found.test == load_fusion(folder / "fused").test
    assert found.test.images == 70
    assert unpruned.training
    assert torch.get_num_threads() == threads
    check_rows(found.rows, sum(p.numel() for p in unpruned.parameters()))
    assert found.file == tmp_path / "there" / "inference.csv"
    check_table(found.file, found.rows)


def check_rows(rows: tuple[PartRow, ...], unpruned: int) -> None:
    """All parts for both batch sizes, with what they weigh."""
    parts = ["expert 0", "expert 1", "slowest expert", "head", "slowest + head", "whole"]
    parts += ["exchange", "unpruned"]
    assert [(row.batch, row.part) for row in rows] == [
        (size, part) for size in (1, 8) for part in parts
    ]
    row = {row.part: row for row in rows[:8]}
    assert row["unpruned"].params == unpruned
    # Without the head: 64 weights and a bias for each of the ten classes.
    assert row["expert 0"].params == unpruned - 650
    assert row["whole"].params == 2 * row["expert 0"].params + row["head"].params
    assert row["slowest expert"].median_ms >= row["expert 1"].median_ms
    assert row["whole"].median_ms > row["head"].median_ms
    assert all(r.low_ms <= r.median_ms <= r.high_ms and r.repeats == 4 for r in rows)


def check_table(file: Path, rows: tuple[PartRow, ...]) -> None:
    """A line a row."""
    with file.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == [
        *("part", "device", "threads", "params", "size_mb", "batch", "repeats"),
        *("median_ms", "low_ms", "high_ms", "image_ms"),
    ]
    assert [line["part"] for line in lines] == [row.part for row in rows]
    assert {line["device"] for line in lines} == {"cpu"}
    last = lines[-1]
    assert float(last["image_ms"]) == pytest.approx(float(last["median_ms"]) / 8, abs=1e-4)


def test_what_cannot_be_is_refused_before_a_process_starts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="devices: expected one for all or one for each of the 2"
    ):
        infer(folder / "fused", data_options=DATA, devices=("cpu",) * 3)
    with pytest.raises(ConfigError, match="expected threads from 1, repeats from 2 and batches"):
        infer(folder / "fused", data_options=DATA, repeats=1)
    for name in ("meta", "elsewhere"):
        with pytest.raises(ConfigError, match=f"device: expected auto, cpu, .* got '{name}'"):
            infer(folder / "fused", data_options=DATA, devices=(name,))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: cannot write there"):
        infer(folder / "fused", data_options=DATA, out=tmp_path / "file")
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "expert1.json").unlink()
    with pytest.raises(ArtifactError, match=r"fusion.json: expert 1: .*expert1.json is missing"):
        infer(moved / "fused", data_options=DATA)
