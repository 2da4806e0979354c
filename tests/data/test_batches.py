from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import feed_of, labels_of, photographs

from fastprune.data import ClassDraw, Feed, Images, PadCrop, Part
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


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("images", "size"), [(48, 12), (47, 12), (50, 8), (49, 7), (3, 8)])
def test_ranks_see_in_each_batch_what_one_process_sees_in_it(
    images: int, size: int, world: int, feeds: dict[str, Feed]
) -> None:
    source = Images(np.zeros((images, 3, 6, 6), np.uint8), np.arange(images))
    feed = replace(feeds["memory"], source=source, indices=np.arange(images), batch_size=size)
    pipeline = open_pipeline(replace(feed, shuffle=True))
    whole = labels_of(pipeline, 1)
    parts = [Part(rank, world) for rank in range(world)]
    shared = [[y.tolist() for _, y in pipeline.epoch(1, part=part)] for part in parts]
    dealt = [
        [y.tolist() for _, y in pipeline.epoch(1, part=replace(part, dealt=True))]
        for part in parts
    ]
    # A last batch that leaves a rank with one image is left out.
    last = pipeline.images % size
    left_out = world > 1 and 0 < last < 2 * world and images > size
    for number, batch in enumerate(whole[:-1] if left_out else whole):
        assert sorted(batch) == sorted(label for mine in shared for label in mine[number])
    assert {len(mine) for mine in shared} == {len(whole) - left_out}
    for number, batch in enumerate(whole):
        assert dealt[number % world][number // world] == batch
    for part, mine in zip(parts, shared, strict=True):
        told = part.of(pipeline.images, size)
        assert (told.batches, told.images) == (len(mine), sum(map(len, mine)))
        assert all(len(batch) == told.batch_size for batch in mine[:-1])
    for part, mine in zip(parts, dealt, strict=True):
        told = replace(part, dealt=True).of(pipeline.images, size)
        assert (told.batches, told.images) == (len(mine), sum(map(len, mine)))
    rest = [y.tolist() for _, y in pipeline.epoch(1, 2, part=parts[-1])]
    assert rest == shared[-1][2:]


def test_ranks_may_take_more_at_a_time(feeds: dict[str, Feed]) -> None:
    pipeline = open_pipeline(replace(feeds["memory"], shuffle=True, batch_size=2))
    alone = labels_of(pipeline, 0)
    parts = [Part(rank, 2, batch_size=4) for rank in range(2)]
    both = [[y.tolist() for _, y in pipeline.epoch(0, part=part)] for part in parts]
    together = [sorted(a + b) for a, b in zip(*both, strict=True)]
    assert together == [sorted(alone[0] + alone[1]), sorted(alone[2] + alone[3])]
