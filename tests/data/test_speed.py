"""Measuring pipelines: each kind is asked, and what cannot feed says why."""

from __future__ import annotations

from pathlib import Path

from image_files import photographs

from fastprune.data import KINDS, DataOptions, measure_pipelines


def test_images_in_memory() -> None:
    parts = measure_pipelines(DataOptions(train_limit=64, test_limit=64), 0, seconds=0.01)

    assert [part.part for part in parts] == ["train", "test"]
    for part in parts:
        assert [speed.kind for speed in part.speeds] == list(KINDS)
        found = {speed.kind: speed for speed in part.speeds}
        assert found["device"].images_per_second
        assert found["torchvision"].images_per_second
        assert found["dali"].images_per_second is None
        assert "in memory" in (found["dali"].problem or "")
        assert found[part.best].images_per_second == max(
            speed.images_per_second or 0 for speed in part.speeds
        )
        assert part.chosen.kind == "device"


def test_image_files(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part).mkdir(exist_ok=True)
            photographs(tmp_path / part / name, 9)
    options = DataOptions(
        name="imagefolder", root=tmp_path, image_size=48, cache=tmp_path / "cache", workers=0
    )

    train, test = measure_pipelines(options, 0, seconds=0.01)

    for part in (train, test):
        assert part.speeds[0].images_per_second
        assert part.chosen.kind == "device"
        assert "decoded once" in part.chosen.reason
