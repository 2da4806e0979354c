"""The cache of decoded evaluation images, and the pipeline that reads it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import Told, feed_of, labels_of, listed, photographs

from fastprune.data import Feed, InputPipeline, PadCrop, Placement, _decoded
from fastprune.data._choice import open_pipeline
from fastprune.data._decoded import open_decoded
from fastprune.data._room import needed, unsupported
from fastprune.errors import DataError
from fastprune.files import TEMPORARY


def evaluation(folder: Path, cache: Path | None, **changed: object) -> Feed:
    fields: dict[str, object] = {"augment": False, "shuffle": False, "cache": cache}
    return feed_of(listed(folder), **{**fields, **changed})


def caches(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.images"))


def same(found: InputPipeline, reference: InputPipeline, epoch: int = 0) -> None:
    for (x, y), (wanted, labels) in zip(found.epoch(epoch), reference.epoch(epoch), strict=True):
        assert y.tolist() == labels.tolist()
        assert torch.equal(x, wanted)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photographs(tmp_path / "images", 130)
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_torchvision(workers: int, folder: Path, tmp_path: Path) -> None:
    told = Told()
    normal = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "batch_size": 30}
    feed = evaluation(folder, tmp_path / "cache", workers=workers, **normal)
    found, reference = open_decoded(feed, told), open_pipeline(feed, "torchvision")
    assert found.kind == "device"
    for epoch in (0, 1):
        same(found, reference, epoch)
    assert told.titles == ["decoding evaluation images: 130 images"]
    assert told.done == 130
    assert told.notes == []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        placement = Placement(dtype=dtype, channels_last=True)
        for (x, _), (wanted, _) in zip(
            found.epoch(0, 3, placement=placement),
            reference.epoch(0, 3, placement=placement),
            strict=True,
        ):
            assert torch.equal(x, wanted)
            assert (x.dtype, x.stride()) == (wanted.dtype, wanted.stride())
    # Another process, and so another pipeline, decodes nothing.
    again = open_decoded(evaluation(folder, tmp_path / "cache", **normal), told)
    same(again, reference)
    assert len(told.titles) == 1


def test_subsets_ranks_and_shuffled_images_come_out_of_it(folder: Path, tmp_path: Path) -> None:
    for changed in (
        {"indices": np.arange(1, 130, 3)},
        {"shuffle": True},
    ):
        feed = evaluation(folder, tmp_path / "cache", **changed)
        same(open_decoded(feed), open_pipeline(feed, "torchvision"), epoch=2)
    assert len(caches(tmp_path / "cache")) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_holes_are_skipped_as_when_decoding(workers: int, tmp_path: Path) -> None:
    photographs(tmp_path / "images", 70, broken=(3, 65, 66))
    told = Told()
    feed = evaluation(tmp_path / "images", tmp_path / "cache", max_bad_images=3, workers=workers)
    found = open_decoded(feed, told)
    same(found, open_pipeline(feed, "torchvision"))
    names = [Path(name).name for name in found.bad_images]
    assert names == ["03.jpg", "65.jpg", "66.jpg"]
    assert len(told.notes) == 3
    again = open_decoded(feed, told)
    same(again, open_pipeline(feed, "torchvision"))
    assert again.bad_images == found.bad_images
    assert len(told.titles) == 1
    for most in (0, 2):
        strict = evaluation(tmp_path / "images", tmp_path / "cache", max_bad_images=most)
        with pytest.raises(DataError, match=r"not a readable image: image file is truncated"):
            labels_of(open_decoded(strict), 0)


def test_too_many_bad_files_leave_no_cache(tmp_path: Path) -> None:
    photographs(tmp_path / "images", 8, broken=(5,))
    with pytest.raises(DataError, match=r"05\.jpg: not a readable image"):
        labels_of(open_decoded(evaluation(tmp_path / "images", tmp_path / "cache")), 0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_a_changed_folder_is_decoded_again_and_its_old_cache_goes(
    folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    labels_of(open_decoded(evaluation(folder, cache)), 0)
    old = caches(cache)
    (folder / "00.jpg").write_bytes((folder / "01.jpg").read_bytes())
    feed = evaluation(folder, cache)
    told = Told()
    same(open_decoded(feed, told), open_pipeline(feed, "torchvision"))
    assert len(told.titles) == 1
    assert len(caches(cache)) == 1
    assert caches(cache) != old
    (folder / "zz.jpg").write_bytes((folder / "01.jpg").read_bytes())
    labels_of(open_decoded(evaluation(folder, cache), told), 0)
    assert len(told.titles) == 2
    assert len(caches(cache)) == 1


def test_another_size_is_another_cache(folder: Path, tmp_path: Path) -> None:
    from fastprune.data import ResizedCrop

    for transform in (ResizedCrop(24, 28), ResizedCrop(24, 24), ResizedCrop(16, 28)):
        feed = evaluation(folder, tmp_path / "cache", transform=transform)
        same(open_decoded(feed), open_pipeline(feed, "torchvision"))
    assert len(caches(tmp_path / "cache")) == 3


def test_what_was_not_used_for_longest_gives_way(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    sets = [np.arange(first, 130, 2) for first in (0, 1)] + [np.arange(65)]
    limit = 2 * (65 * 3 * 24 * 24 + 6000)
    for chosen in (sets[0], sets[1]):
        labels_of(open_decoded(evaluation(folder, cache, indices=chosen, cache_limit=limit)), 0)
    for file in caches(cache):
        os.utime(file, (1, 1))
    reader = open_decoded(evaluation(folder, cache, indices=sets[0], cache_limit=limit))
    labels_of(reader, 0)
    used = max(caches(cache), key=lambda file: file.stat().st_mtime)
    labels_of(open_decoded(evaluation(folder, cache, indices=sets[2], cache_limit=limit)), 0)
    assert len(caches(cache)) == 2
    assert used in caches(cache)


@pytest.mark.parametrize("place", [10, 4096 + 5, -20, None], ids=["head", "pixels", "tail", "cut"])
def test_a_damaged_cache_is_made_again(place: int | None, folder: Path, tmp_path: Path) -> None:
    feed = evaluation(folder, tmp_path / "cache")
    labels_of(open_decoded(feed), 0)
    (file,) = caches(tmp_path / "cache")
    content = bytearray(file.read_bytes())
    if place is None:
        del content[len(content) // 2 :]
    else:
        content[place] ^= 0xFF
    file.write_bytes(content)
    told = Told()
    pipeline = open_decoded(feed, told)
    same(pipeline, open_pipeline(feed, "torchvision"))
    assert len(told.notes) == len(told.titles) == 1
    assert "decoding again" in told.notes[0]
    same(open_decoded(feed, told), open_pipeline(feed, "torchvision"))
    assert len(told.titles) == 1


def test_damage_found_in_the_middle_changes_no_batch(folder: Path, tmp_path: Path) -> None:
    feed = evaluation(folder, tmp_path / "cache", batch_size=50)
    labels_of(open_decoded(feed), 0)
    (file,) = caches(tmp_path / "cache")
    content = bytearray(file.read_bytes())
    content[4096 + 128 * 3 * 24 * 24] ^= 1
    file.write_bytes(content)
    told = Told()
    same(open_decoded(feed, told), open_pipeline(feed, "torchvision"))
    assert "damaged in images 128" in told.notes[0]


def test_a_file_that_changes_while_decoding_is_an_error(folder: Path, tmp_path: Path) -> None:
    feed = evaluation(folder, tmp_path / "cache")
    os.utime(folder / "77.jpg", ns=(0, 0))
    with pytest.raises(DataError, match=r"77\.jpg: changed since the run began"):
        labels_of(open_decoded(feed), 0)
    assert caches(tmp_path / "cache") == []


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fastprune.data._decoded import open_decoded
from image_files import Told, feed_of, listed

class Slow(Told):
    def advance(self, n=1):
        print("decoding", flush=True)
        time.sleep(60)

feed = feed_of(listed(Path(sys.argv[2])), augment=False, shuffle=False, cache=Path(sys.argv[3]))
next(iter(open_decoded(feed, Slow()).epoch(0)))
"""


def test_a_kill_leaves_no_cache_and_whoever_waited_decodes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    arguments = [str(Path(__file__).parent), str(folder), str(cache)]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        assert list(cache.glob(f"{TEMPORARY}*"))
        assert caches(cache) == []
        threading.Timer(0.5, process.kill).start()
        feed = evaluation(folder, cache)
        told = Told()
        same(open_decoded(feed, told), open_pipeline(feed, "torchvision"))
    assert "waiting for another process" in told.notes[0]
    assert len(told.titles) == len(caches(cache)) == 1
    assert not list(cache.glob(f"{TEMPORARY}*"))


def test_what_cannot_be_kept_says_why(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    most = needed(evaluation(folder, cache)).bytes
    assert unsupported(evaluation(folder, cache, cache_limit=most)) is None
    assert not cache.exists()
    for changed, reason in (
        ({"cache": None}, "data.cache is false"),
        (
            {"cache_limit": most - 1},
            "its decoded images would take 0.000233 GB, and data.cache_limit",
        ),
        (
            {"cache_limit": most, "cache_taken": 10**7},
            "take 0.000233 GB beside 0.01 GB of this run's other sets, and data.cache_limit",
        ),
        ({"cache": folder / "00.jpg"}, "cannot be written to"),
    ):
        feed = evaluation(folder, cache, **changed) if "cache" not in changed else None
        feed = feed or evaluation(folder, changed["cache"])  # type: ignore[arg-type]
        assert reason in (unsupported(feed) or "")
        with pytest.raises(DataError, match="device cannot feed these images"):
            open_decoded(feed)
    assert unsupported(evaluation(folder, cache, transform=PadCrop(2, True)))


def test_photographs_of_ants_and_bees(fastprune_data: Path, tmp_path: Path) -> None:
    from fastprune.data import Files, ResizedCrop

    paths = sorted(str(p) for p in (fastprune_data / "hymenoptera-256" / "val").rglob("*.jpg"))
    source = Files(tuple(paths[:40]), np.arange(40))
    fields = {"augment": False, "shuffle": False, "transform": ResizedCrop(224, 256)}
    feed = feed_of(source, cache=tmp_path, **fields)
    same(open_decoded(feed), open_pipeline(feed, "torchvision"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("share", "told"), [(4, "GB on cuda"), (2**60, "more than a quarter")])
def test_on_a_gpu_the_batches_are_the_same(
    share: int, told: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_decoded, "_SHARE", share)
    feed = evaluation(folder, tmp_path / "cache", batch_size=50)
    pipeline = open_decoded(feed)
    placement = Placement(torch.device("cuda"), torch.bfloat16, channels_last=True)
    reference = open_pipeline(feed, "torchvision").epoch(0)
    for (x, y), (wanted, labels) in zip(
        pipeline.epoch(0, placement=placement), reference, strict=True
    ):
        assert x.is_cuda
        assert torch.equal(x.cpu(), wanted.to(torch.bfloat16))
        assert torch.equal(y.cpu(), labels)
    assert told in pipeline.reason  # type: ignore[attr-defined]
