"""The room that decoded images take, and who gets it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from image_files import feed_of, labels_of, listed, photographs
from PIL import Image
from pydantic import ValidationError

from fastprune.data import DataOptions, Feed, ResizedCrop, choice, load
from fastprune.data._choice import open_pipeline
from fastprune.data._decoded import open_decoded
from fastprune.data._room import needed, unsupported
from fastprune.data._splits import feeds
from fastprune.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photographs(tmp_path / "images", 90)
    return tmp_path / "images"


def training(folder: Path, cache: Path, **changed: Any) -> Feed:
    return feed_of(listed(folder), cache=cache, **changed)


@pytest.mark.parametrize("resize", [20, 40, 100])
@pytest.mark.parametrize("count", [40, 90])
def test_what_was_said_is_what_is_taken(
    resize: int, count: int, folder: Path, tmp_path: Path
) -> None:
    transform = ResizedCrop(16, resize)
    feed = training(folder, tmp_path / "cache", indices=np.arange(count), transform=transform)
    said = needed(feed)
    assert said.sampled == min(count, 64)
    assert (said.shrunk > 0) == (resize < 46)
    labels_of(open_decoded(feed), 0)
    (file,) = (tmp_path / "cache").glob("*.images")
    assert 0.85 * said.bytes < file.stat().st_size <= said.bytes
    evaluation = training(folder, tmp_path / "other", augment=False, shuffle=False)
    labels_of(open_decoded(evaluation), 0)
    (file,) = (tmp_path / "other").glob("*.images")
    assert 0.9 * needed(evaluation).bytes < file.stat().st_size <= needed(evaluation).bytes


def test_headers_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).write_bytes(b"no image")
    feed = training(tmp_path / "images", tmp_path / "cache", transform=ResizedCrop(24, 28))
    assert needed(feed).sampled == 0
    assert needed(feed).bytes >= 2 * 3 * 28 * 28


def test_the_choice_says_what_it_rests_on(folder: Path, tmp_path: Path) -> None:
    feed = training(folder, tmp_path / "cache", transform=ResizedCrop(24, 99))
    kind, reason = choice(feed)
    assert kind == "device"
    assert "by the headers of 64 of them) are decoded once and kept in" in reason
    kind, reason = choice(replace(feed, transform=ResizedCrop(24, 45)))
    assert kind in ("torchvision", "dali")
    assert "since 15 of the 64 that were looked at would be brought to a shorter side" in reason
    # Asked for by name, it is done.
    assert open_pipeline(replace(feed, transform=ResizedCrop(24, 45)), "device").kind == "device"
    kind, reason = choice(
        training(folder, tmp_path / "cache", cache_limit=1000, transform=ResizedCrop(24, 99))
    )
    assert kind in ("torchvision", "dali")
    assert "by the headers of 64 of them, and data.cache_limit=1e-06" in reason
    with pytest.raises(DataError, match="device cannot feed these images: its decoded images"):
        open_decoded(training(folder, tmp_path / "cache", cache_limit=1000))


def test_headers_that_promised_too_little_are_an_error(folder: Path, tmp_path: Path) -> None:
    # The one that is not among the 64, much larger than they.
    sampled = {90 * k // 64 for k in range(64)}
    place = next(i for i in range(90) if i not in sampled)
    Image.new("RGB", (900, 900)).save(folder / f"{place:02}.jpg")
    feed = training(folder, tmp_path / "cache", transform=ResizedCrop(24, 900))
    feed = replace(feed, cache_limit=needed(feed).bytes)
    with pytest.raises(DataError, match=r"data\.cache_limit: got .* training images take more"):
        labels_of(open_decoded(feed), 0)
    assert not list((tmp_path / "cache").glob("*.images"))


def options(root: Path, **changed: Any) -> DataOptions:
    fields: dict[str, Any] = {
        "name": "imagefolder",
        "root": root,
        "image_size": 48,
        "cache": root / "cache",
        "workers": 0,
        "validation": 10,
    }
    return DataOptions(**{**fields, **changed})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for name in ("a", "b"):
            photographs(tmp_path / part / name, 20)
    return tmp_path


def test_the_sets_of_a_run_share_the_room(root: Path) -> None:
    found, _ = feeds(options(root), 0)
    both = sum(needed(found[part]).bytes for part in ("test", "validation"))
    assert found["train"].cache_taken == both
    most = both + needed(found["train"]).bytes
    for limit, kind in ((most, "device"), (most - 1, "torchvision")):
        shared, _ = feeds(options(root, cache_limit=limit / 1e9), 0)
        assert {part: choice(feed).kind for part, feed in shared.items()} == {
            "train": kind,
            "validation": "device",
            "test": "device",
        }
    assert "beside" in (unsupported(shared["train"]) or "")
    with pytest.raises(DataError, match=r"beside .* of this run's other sets"):
        load(options(root, cache_limit=(most - 1) / 1e9, pipeline="device"), 0)


def test_the_sets_of_a_run_share_what_is_free_on_the_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = feeds(options(root), 0)
    evaluated = found["train"].cache_taken
    assert found["train"].cache_unwritten == evaluated
    wanted = needed(found["train"]).bytes
    free = evaluated + wanted
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert unsupported(found["train"]) is None
    free -= 1
    assert "GB of this run's other sets, and 0.0" in (unsupported(found["train"]) or "")
    # What lies there already takes nothing of what is free.
    for pipeline in load(options(root), 0).parts.values():
        if pipeline.kind == "device":
            labels_of(pipeline, 0)
    free = wanted
    shared, _ = feeds(options(root), 0)
    assert (shared["train"].cache_taken, shared["train"].cache_unwritten) == (evaluated, 0)
    assert unsupported(shared["train"]) is None


def test_a_folder_that_may_not_be_looked_into_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, stat = tmp_path / "closed", os.stat

    # As for who is not root, whom nothing is denied to.
    def denied(path: Any, **given: Any) -> Any:
        if closed in Path(os.fsdecode(path)).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **given)

    closed.mkdir()
    monkeypatch.setattr(os, "stat", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    reason = unsupported(training(folder, closed / "a" / "b"))
    assert reason == f"data.cache={closed / 'a' / 'b'} cannot be written to"


def test_where_there_is_no_home_folder_nothing_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    found, _ = feeds(options(root, cache=None), 0)
    assert {feed.cache for feed in found.values()} == {None}
    assert (
        unsupported(found["test"]) == "data.cache is false, or null where there is no home folder"
    )
    for field in ("root", "cache"):
        with pytest.raises(ValidationError, match="~nosuchuser is nobody's home folder"):
            DataOptions(**{field: "~nosuchuser/images"})


def test_no_set_of_a_run_displaces_another(root: Path) -> None:
    found, _ = feeds(options(root), 0)
    most = found["train"].cache_taken + needed(found["train"]).bytes
    # Of another folder, and used before: what gives way.
    other = training(root / "val" / "a", root / "cache", transform=ResizedCrop(30, 30))
    labels_of(open_decoded(other), 0)
    splits = load(options(root, cache_limit=most / 1e9), 0)
    kept: dict[str, int] = {}
    for epoch in range(2):
        for pipeline in splits.parts.values():
            labels_of(pipeline, epoch)
            pipeline.close()
        files = {file.name: file.stat().st_ino for file in (root / "cache").glob("*.images")}
        assert len(files) == 3
        assert kept in ({}, files)
        kept = files
