from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastprune.data import Feed, Files, Images, PadCrop, Part, Placement, ResizedCrop, choice
from fastprune.data._choice import open_pipeline
from fastprune.errors import DataError

HERE = Placement()
MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.21, 0.22)


def feed(count: int = 45, **changed: Any) -> Feed:
    """A training feed of random images; an image's label is its number."""
    shape = changed.pop("shape", (3, 12, 9))
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    fields: dict[str, Any] = {
        "source": Images(pixels, np.arange(count)),
        "indices": np.arange(count),
        "transform": PadCrop(padding=3, flip=True),
        "augment": True,
        "shuffle": True,
        "batch_size": 8,
        "mean": MEAN,
        "std": STD,
        "seed": 3,
    }
    return Feed(**{**fields, **changed})


EVALUATION = {"augment": False, "shuffle": False}
PLACEMENTS = [
    Placement(dtype=dtype, channels_last=channels_last)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for channels_last in (False, True)
]


def same(given: Feed, placement: Placement = HERE) -> None:
    """Both pipelines give the same batches, to the bit and in the same memory."""
    ours = list(open_pipeline(given, "device").epoch(2, placement=placement))
    theirs = list(open_pipeline(given, "torchvision").epoch(2, placement=placement))
    assert len(ours) == len(theirs) > 0
    for (x, y), (pixels, labels) in zip(ours, theirs, strict=True):
        assert x.dtype == pixels.dtype == placement.dtype
        assert torch.equal(x, pixels)
        assert x.stride() == pixels.stride()
        assert y.dtype == torch.int64
        assert torch.equal(y, labels)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
@pytest.mark.parametrize("mode", [{}, EVALUATION], ids=["training", "evaluation"])
def test_the_batches_are_torchvisions_to_the_bit(mode: Any, placement: Placement) -> None:
    same(feed(**mode), placement=placement)


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": (3, 32, 32)},
        {"shape": (1, 28, 28), "mean": (0.3,), "std": (0.4,)},
        {"shape": (3, 5, 7)},
        {"shape": (3, 1, 1)},
        {"transform": PadCrop(padding=0, flip=True)},
        {"transform": PadCrop(padding=20, flip=False)},
        {"indices": np.arange(2, 44, 3)},
        {"batch_size": 45},
        {"batch_size": 44},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_other_sets_and_batches(changed: Any) -> None:
    for mode in ({}, EVALUATION):
        same(feed(**{**changed, **mode}))


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_goes_on_in_the_middle(start: int) -> None:
    pipeline = open_pipeline(feed(), "device")
    whole, rest = list(pipeline.epoch(1)), list(pipeline.epoch(1, start))
    assert len(rest) == len(whole) - start
    for (x, y), (again, labels) in zip(whole[start:], rest, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
    assert list(pipeline.epoch(1, len(whole))) == []


@pytest.mark.parametrize("dealt", [False, True])
@pytest.mark.parametrize("mode", [{}, EVALUATION], ids=["training", "evaluation"])
def test_ranks_share_the_set_and_change_no_image(mode: Any, dealt: bool) -> None:
    def images(rank: int, world: int) -> dict[int, torch.Tensor]:
        pipeline = open_pipeline(feed(**mode), "device")
        part = Part(rank, world, dealt)
        given = pipeline.epoch(4, part=part)
        found = [pair for x, y in given for pair in zip(y.tolist(), x, strict=True)]
        mine = part.of(pipeline.images, pipeline.batch_size)
        assert len(found) == len(dict(found)) == mine.images
        return dict(found)

    alone = images(0, 1)
    shards = [images(rank, 3) for rank in range(3)]
    # Of 45 images in batches of eight, five are left over: too few for three ranks to train on.
    whole = 45 if dealt else 40
    assert sum(len(shard) for shard in shards) == whole
    assert len({label for shard in shards for label in shard}) == whole
    for shard in shards:
        for label, image in shard.items():
            assert torch.equal(image, alone[label])


def test_a_read_only_set_and_a_set_that_is_not_contiguous() -> None:
    given = feed()
    assert isinstance(given.source, Images)
    expected = list(open_pipeline(given, "device").epoch(0))
    swapped = np.ascontiguousarray(given.source.pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    frozen = given.source.pixels.copy()
    frozen.flags.writeable = False
    for pixels in (swapped, frozen):
        found = open_pipeline(feed(source=Images(pixels, given.source.labels)), "device").epoch(0)
        for (x, y), (pixels_of, labels) in zip(found, expected, strict=True):
            assert torch.equal(x, pixels_of)
            assert torch.equal(y, labels)


def test_a_batch_is_nobody_elses_memory() -> None:
    given = feed(**EVALUATION)
    pipeline = open_pipeline(given, "device")
    before = [(x.clone(), y.clone()) for x, y in pipeline.epoch(0)]
    for x, y in pipeline.epoch(0):
        x.zero_()
        y.zero_()
    for (x, y), (pixels, labels) in zip(pipeline.epoch(0), before, strict=True):
        assert torch.equal(x, pixels)
        assert torch.equal(y, labels)


def test_closed_it_opens_again() -> None:
    pipeline = open_pipeline(feed(), "device")
    first = [x for x, _ in pipeline.epoch(0)]
    pipeline.close()
    assert not pipeline._residents  # type: ignore[attr-defined]
    assert all(map(torch.equal, first, (x for x, _ in pipeline.epoch(0))))


def test_another_process_sees_the_same() -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); import test_device as t\n"
        "print(t.fingerprint())"
    )
    folder = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == fingerprint()


def fingerprint() -> str:
    batches = open_pipeline(feed(), "device").epoch(7)
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x, _ in batches)).hexdigest()


def test_torchs_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(open_pipeline(feed(), "device").epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_counts_are_those_of_every_pipeline() -> None:
    for count in (44, 45, 41):
        ours, theirs = (open_pipeline(feed(count), kind) for kind in ("device", "torchvision"))
        for name in ("images", "batches", "batch_size", "highest_label", "bad_images"):
            assert getattr(ours, name) == getattr(theirs, name)
    empty = open_pipeline(feed(indices=np.zeros(0, np.int64)), "device")
    assert list(empty.epoch(0)) == []


def test_auto_says_what_it_takes_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    given = feed()
    files = feed(source=Files((), np.zeros(0, np.int64)), indices=np.zeros(0, np.int64))
    assert choice(given) == ("device", choice(given).reason)
    assert "in memory" in choice(given).reason
    assert open_pipeline(given).kind == "device"
    assert open_pipeline(given, "torchvision").kind == "torchvision"
    for there, kind in ((True, "dali"), (False, "torchvision")):
        monkeypatch.setattr("fastprune.data._choice._has_dali", lambda: True)
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert choice(files).kind == kind


def test_image_files_that_nothing_may_be_kept_of_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    source = Files((str(tmp_path / "a.jpg"),), np.zeros(1, np.int64))
    given = feed(source=source, indices=np.zeros(1, np.int64), transform=ResizedCrop(8, 9))
    with pytest.raises(DataError, match=r"device cannot feed these images: data\.cache is false"):
        open_pipeline(given, "device")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_a_gpu_gives_the_same_batches(placement: Placement) -> None:
    device = torch.device("cuda", 0)
    for given in (feed(), feed(indices=np.arange(2, 44, 3)), feed(**EVALUATION)):
        there = Placement(device, placement.dtype, placement.channels_last)
        ours = open_pipeline(given, "device").epoch(1, placement=there)
        here = open_pipeline(given, "device").epoch(1, placement=placement)
        for (x, y), (pixels, labels) in zip(ours, here, strict=True):
            assert x.device == y.device == device
            assert torch.equal(x.cpu(), pixels)
            assert torch.equal(y.cpu(), labels)
            assert x.stride() == pixels.stride()
