"""Broken and changing files in a pipeline."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_files import Told, feed_of, labels_of, listed, photographs

from fastprune.data._choice import open_pipeline
from fastprune.errors import DataError


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_named_and_told_of_once(workers: int, tmp_path: Path) -> None:
    source = photographs(tmp_path / "a", 12, broken=(3, 7))
    told = Told()
    feed = feed_of(source, workers=workers, max_bad_images=2)
    pipeline = open_pipeline(feed, "torchvision", told)
    whole = open_pipeline(feed_of(photographs(tmp_path / "b", 12)), "torchvision")
    for epoch in (0, 1):
        for (x, y), (reference, labels) in zip(
            pipeline.epoch(epoch), whole.epoch(epoch), strict=True
        ):
            readable = ~torch.isin(labels, torch.tensor([3, 7]))
            assert y.tolist() == labels[readable].tolist()
            assert torch.equal(x, reference[readable])
    assert sorted(pipeline.bad_images) == [source.paths[3], source.paths[7]]
    assert len(told.notes) == 2
    assert all("not a readable image, left out: " in note for note in told.notes)
    assert pipeline.images == 12
    assert labels_of(pipeline, 1, 1) == labels_of(pipeline, 1)[1:]
    pipeline.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_one_bad_file_too_many_is_an_error(workers: int, tmp_path: Path) -> None:
    source = photographs(tmp_path / "a", 12, broken=(1, 5, 9))
    plain = {"augment": False, "shuffle": False, "workers": workers}
    strict = open_pipeline(feed_of(source, **plain), "torchvision")
    with pytest.raises(
        DataError, match=r"01\.jpg: not a readable image: image file is truncated"
    ) as caught:
        labels_of(strict, 0)
    assert "data.max_bad_images" in str(caught.value)
    assert "\n" not in str(caught.value)
    lenient = open_pipeline(feed_of(source, max_bad_images=2, **plain), "torchvision")
    wanted = r"09\.jpg: .*max_bad_images=2 allows, after .*01\.jpg, .*05\.jpg"
    with pytest.raises(DataError, match=wanted):
        labels_of(lenient, 0)


def test_a_batch_of_bad_files_alone(tmp_path: Path) -> None:
    """Left out of an evaluation; in training steps are counted, and one would be missing."""
    source = photographs(tmp_path / "a", 12, broken=(4, 5, 6, 7))
    plain = feed_of(source, max_bad_images=9, augment=False, shuffle=False)
    for kind in ("torchvision", "device"):
        kept = replace(plain, cache=tmp_path / "cache")
        batches = [y.tolist() for _, y in open_pipeline(kept, kind).epoch(0)]
        assert batches == [[0, 1, 2, 3], [8, 9, 10, 11]]
    one = feed_of(source, max_bad_images=9, batch_size=1)
    with pytest.raises(DataError, match="none of the 1 images of a training batch can be read"):
        labels_of(open_pipeline(one, "torchvision"), 0)


def test_a_new_epoch_ends_the_one_before(tmp_path: Path) -> None:
    source = photographs(tmp_path / "a", 24)
    for workers in (0, 1):
        pipeline = open_pipeline(feed_of(source, workers=workers), "torchvision")
        old = pipeline.epoch(0)
        next(old)
        new = pipeline.epoch(1)
        first = next(new)[1].tolist()
        assert list(old) == []
        rest = [label for _, y in new for label in y.tolist()]
        assert sorted(first + rest) == list(range(24))
        pipeline.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_changes_is_noticed(workers: int, tmp_path: Path) -> None:
    source = photographs(tmp_path / "a", 8)
    feed = feed_of(source, workers=workers, max_bad_images=8)
    os.utime(source.paths[2], ns=(0, 0))
    with pytest.raises(DataError, match=r"02\.jpg: changed since the run began"):
        labels_of(open_pipeline(feed, "torchvision"), 0)
    Path(source.paths[2]).unlink()
    with pytest.raises(DataError, match=r"02\.jpg: changed since the run began \(it is gone\)"):
        labels_of(open_pipeline(feed, "torchvision"), 0)


def test_a_link_to_nothing_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: an image that cannot be read: No such file"):
        listed(tmp_path)
