from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import feed_of, labels_of, photographs

from fastprune.data import ClassDraw, Feed, Images, PadCrop
from fastprune.data._choice import KINDS, open_pipeline
from fastprune.data._pipeline import Kind


@pytest.fixture
def feeds(tmp_path: Path) -> dict[str, Feed]:
    """An evaluation feed of files, which every kind feeds, and one of images in memory."""
    files = feed_of(photographs(tmp_path / "a", 8), augment=False, cache=tmp_path / "cache")
    pixels = np.zeros((8, 3, 6, 6), np.uint8)
    images = Images(pixels, np.arange(8))
    return {"files": files, "memory": replace(files, source=images, transform=PadCrop(1, True))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", ["files", "memory"])
def test_an_epoch_begins_at_no_batch_below_0(kind: str, held: str, feeds: dict[str, Feed]) -> None:
    if kind == "dali":
        if held == "memory":
            pytest.skip("DALI feeds image files alone")
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    pipeline = open_pipeline(feeds[held], kind)  # type: ignore[arg-type]
    for start in (-1, -2):
        with pytest.raises(ValueError, match=f"^start: expected 0 to 2, got {start}$"):
            labels_of(pipeline, 0, start)
    assert len(labels_of(pipeline, 0, 1)) == 1
    assert labels_of(pipeline, 0, 2) == []
    pipeline.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", ["files", "memory"])
def test_spread_images_are_the_same_ones_with_the_classes_in_proportion(
    kind: str, held: str, feeds: dict[str, Feed]
) -> None:
    if kind == "dali":
        if held == "memory":
            pytest.skip("DALI feeds image files alone")
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    sides = np.repeat([0, 1], 4)
    source = replace(feeds[held].source, labels=sides)
    feed = replace(feeds[held], source=source, batch_size=2, shuffle=False)
    pipeline = open_pipeline(feed, kind)  # type: ignore[arg-type]

    def seen(**options: bool) -> tuple[list[list[int]], torch.Tensor]:
        batches = list(pipeline.epoch(0, **options))
        pixels = torch.cat([x.flatten(1).sum(1) for x, _ in batches])
        return [y.tolist() for _, y in batches], pixels

    (plain, before), (spread, after) = seen(), seen(spread=True)
    assert plain == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert [sorted(labels) for labels in spread] == [[0, 1]] * 4
    assert torch.equal(before.sort().values, after.sort().values)
    assert seen(spread=True)[0] == spread
    pipeline.close()


@pytest.mark.parametrize("held", ["files", "memory"])
def test_every_kind_draws_the_same_images_of_some_classes_more_often(
    held: str, feeds: dict[str, Feed]
) -> None:
    labels = np.repeat([0, 1], (2, 6))
    source = replace(feeds[held].source, labels=labels)
    feed = replace(feeds[held], source=source, batch_size=3, shuffle=True)
    found: dict[str, list[list[int]]] = {}
    for kind in KINDS:
        if kind == "dali" and (held == "memory" or not importlib.util.find_spec("nvidia.dali")):
            continue
        pipeline = open_pipeline(feed, kind)
        draw = ClassDraw((0,), 9.0)
        epochs = [[y.tolist() for _, y in pipeline.epoch(e, draw=draw)] for e in range(30)]
        rest = [y.tolist() for _, y in pipeline.epoch(4, 1, draw=draw)]
        assert rest == epochs[4][1:]
        assert [y.tolist() for _, y in pipeline.epoch(0)] != epochs[0]
        found[kind] = [label for epoch in epochs for label in epoch]
        pipeline.close()
    assert len(found) >= 2
    first, *others = found.values()
    assert all(other == first for other in others)
    # Two of weight 9 and six of 1: three in four.
    assert abs(np.concatenate(first).mean() - 0.25) < 0.1


@pytest.mark.parametrize("kind", ["device", "torchvision"])
def test_images_for_evaluation_are_not_drawn(kind: Kind, feeds: dict[str, Feed]) -> None:
    pipeline = open_pipeline(replace(feeds["memory"], shuffle=False), kind)
    with pytest.raises(ValueError, match="not shuffled"):
        list(pipeline.epoch(0, draw=ClassDraw((0,), 9.0)))
