"""Training batches out of whole decoded images, against those of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import Told, feed_of, labels_of, listed
from PIL import Image

from fastprune.data import Feed, Files, Part, Placement, ResizedCrop, _decoded
from fastprune.data._choice import open_pipeline
from fastprune.data._decoded import _scaled, open_decoded
from fastprune.errors import DataError


def smooth(folder: Path, count: int, broken: tuple[int, ...] = (), scale: int = 1) -> Path:
    """Photographs without edges, of 40 to 96 pixels or more; broken ones are cut off."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    for i in range(count):
        small = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        size = (scale * (40 + 14 * (i % 5)), scale * (72 - 16 * (i % 3)))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
        if i in broken:
            content = (folder / f"{i:02}.png").read_bytes()
            (folder / f"{i:02}.png").write_bytes(content[: len(content) * 3 // 4])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return smooth(tmp_path / "images", 70)


def training(folder: Path, cache: Path, **changed: Any) -> Feed:
    fields: dict[str, Any] = {"cache": cache, "transform": ResizedCrop(24, 72), "batch_size": 9}
    return feed_of(listed(folder), **{**fields, **changed})


def same(ours: Any, theirs: Any, epoch: int, mean: float, most: float, start: int = 0) -> None:
    """Labels and order are equal, pixels of 0 to 1 as near as said in levels of 255."""
    both = zip(ours.epoch(epoch, start), theirs.epoch(epoch, start), strict=True)
    for (x, y), (wanted, labels) in both:
        assert torch.equal(y, labels)
        assert x.shape == wanted.shape
        assert x.dtype == wanted.dtype
        off = 255 * (x - wanted).abs()
        assert off.mean((1, 2, 3)).max() <= mean
        assert off.max() <= most


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_parts_as_torchvision(workers: int, folder: Path, tmp_path: Path) -> None:
    told = Told()
    feed = training(folder, tmp_path / "cache", workers=workers)
    found, reference = open_decoded(feed, told), open_pipeline(feed, "torchvision")
    assert found.kind == "device"
    for epoch in (0, 3):
        # Nothing was shrunk: bytes against floats, rounded twice.
        same(found, reference, epoch, mean=0.5, most=2)
    assert told.titles == ["decoding training images: 70 images"]
    assert told.done == 70
    assert told.notes == []
    # Another process, and so another pipeline, decodes nothing; nor does another size.
    again = open_decoded(training(folder, tmp_path / "cache", transform=ResizedCrop(16, 72)), told)
    assert labels_of(again, 0) == labels_of(reference, 0)
    assert len(told.titles) == 1


def test_of_shrunk_images_the_same_parts(tmp_path: Path) -> None:
    folder = smooth(tmp_path / "images", 18, scale=8)
    feed = training(folder, tmp_path / "cache", transform=ResizedCrop(112, 128))
    # Parts begin at whole pixels of what is kept.
    same(open_decoded(feed), open_pipeline(feed, "torchvision"), 1, mean=3, most=40)


def test_it_goes_on_in_the_middle_and_after_being_closed(folder: Path, tmp_path: Path) -> None:
    pipeline = open_decoded(training(folder, tmp_path / "cache"))
    whole = list(pipeline.epoch(2))
    pipeline.close()
    for (x, y), (again, labels) in zip(whole[3:], pipeline.epoch(2, 3), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
    assert list(pipeline.epoch(2, len(whole))) == []


def test_ranks_and_batch_sizes_change_no_image(folder: Path, tmp_path: Path) -> None:
    def images(**changed: Any) -> dict[int, torch.Tensor]:
        pipeline = open_decoded(training(folder, tmp_path / "cache", **changed))
        pairs = (zip(y.tolist(), x, strict=True) for x, y in pipeline.epoch(4))
        return dict(pair for batch in pairs for pair in batch)

    alone = images()
    assert len(alone) == 70
    for label, image in images(batch_size=70).items():
        assert torch.equal(image, alone[label])
    pipeline = open_decoded(training(folder, tmp_path / "cache"))
    for part in (Part(0, 2), Part(1, 2), Part(2, 3, dealt=True)):
        for x, y in pipeline.epoch(4, part=part):
            for image, label in zip(x, y.tolist(), strict=True):
                assert torch.equal(image, alone[label])


def test_a_part_of_the_set(folder: Path, tmp_path: Path) -> None:
    feed = training(folder, tmp_path / "cache", indices=np.arange(1, 70, 4))
    same(open_decoded(feed), open_pipeline(feed, "torchvision"), 0, mean=0.5, most=2)


def test_placements(folder: Path, tmp_path: Path) -> None:
    pipeline = open_decoded(training(folder, tmp_path / "cache"))
    plain = list(pipeline.epoch(0))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        placed = pipeline.epoch(0, placement=Placement(dtype=dtype, channels_last=True))
        for (x, _), (wanted, _) in zip(placed, plain, strict=True):
            assert torch.equal(x, wanted.to(dtype))
            assert x.is_contiguous(memory_format=torch.channels_last)


def test_bad_files_are_left_out_as_when_decoding(tmp_path: Path) -> None:
    folder = smooth(tmp_path / "images", 67, broken=(3, 64, 66))
    feed = training(folder, tmp_path / "cache", max_bad_images=3)
    told = Told()
    found = open_decoded(feed, told)
    same(found, open_pipeline(feed, "torchvision"), 0, mean=0.5, most=2)
    assert [Path(name).name for name in found.bad_images] == ["03.png", "64.png", "66.png"]
    again = open_decoded(feed, told)
    same(again, open_pipeline(feed, "torchvision"), 1, mean=0.5, most=2)
    assert sorted(again.bad_images) == sorted(found.bad_images)
    assert len(told.titles) == 1
    strict = training(folder, tmp_path / "cache", max_bad_images=2)
    with pytest.raises(DataError, match="not a readable image"):
        labels_of(open_decoded(strict), 0)
    for kind in ("device", "torchvision"):
        alone = training(folder, tmp_path / "cache", max_bad_images=3, batch_size=1)
        with pytest.raises(DataError, match="none of the 1 images of a training batch can be"):
            labels_of(open_pipeline(alone, kind), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [10, 4096 + 5, -1200, -20])
def test_a_damaged_store_is_made_again(place: int, folder: Path, tmp_path: Path) -> None:
    feed = training(folder, tmp_path / "cache")
    before = list(open_decoded(feed).epoch(0))
    (file,) = (tmp_path / "cache").glob("*.images")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    told = Told()
    for (x, _), (wanted, _) in zip(open_decoded(feed, told).epoch(0), before, strict=True):
        assert torch.equal(x, wanted)
    assert len(told.notes) == len(told.titles) == 1
    assert "decoding again" in told.notes[0]


def test_parts_stay_inside_what_is_kept() -> None:
    generator = np.random.default_rng(0)
    own = generator.integers(1, 900, (2000, 2))
    kept = np.maximum(own * generator.uniform(0.05, 1, (2000, 1)), 1).astype(np.int32)
    first = (generator.random((2000, 2)) * own).astype(np.int64)
    boxes = np.hstack([first, 1 + ((own - first) * generator.random((2000, 2))).astype(np.int64)])
    boxes[:, 2:] = np.minimum(boxes[:, 2:], own - first)
    found = _scaled(boxes, own.astype(np.int32), kept)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= kept).all()
    same_size = _scaled(boxes, own.astype(np.int32), own.astype(np.int32))
    assert (same_size == boxes).all()


def test_photographs_of_ants_and_bees(fastprune_data: Path, tmp_path: Path) -> None:
    paths = sorted(str(p) for p in (fastprune_data / "hymenoptera-256" / "train").rglob("*.jpg"))
    source = Files(tuple(paths[:40]), np.arange(40))
    feed = feed_of(source, cache=tmp_path, transform=ResizedCrop(224, 256))
    same(open_decoded(feed), open_pipeline(feed, "torchvision"), 0, mean=1, most=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("share", "told"), [(4, "GB on cuda"), (2**60, "more than a quarter")])
def test_on_a_gpu_the_batches_are_the_same(
    share: int, told: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_decoded, "_SHARE", share)
    feed = training(folder, tmp_path / "cache")
    pipeline = open_decoded(feed)
    placed = pipeline.epoch(0, placement=Placement(torch.device("cuda"), channels_last=True))
    for (x, y), (wanted, labels) in zip(placed, open_decoded(feed).epoch(0), strict=True):
        assert x.is_cuda
        assert torch.allclose(x.cpu(), wanted, atol=1e-4)
        assert torch.equal(y.cpu(), labels)
    assert told in pipeline.reason  # type: ignore[attr-defined]
