from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastprune.data import DataOptions, Feed, Files, Images, InputPipeline, PadCrop, ResizedCrop
from fastprune.data import load as load_splits
from fastprune.data._draws import epoch_draws
from fastprune.data._torchvision import open_pipeline, pad_crop, random_box
from fastprune.errors import DataError

ONES = (1 / 255, 1 / 255, 1 / 255)
"""A standard deviation that gives back the pixels as they are."""


def arrays(count: int, **changed: object) -> Feed:
    """A feed of random images without black; an image's label is its number."""
    pixels = np.random.default_rng(0).integers(1, 256, (count, 3, 8, 8), dtype=np.uint8)
    fields: dict[str, object] = {
        "source": Images(pixels, np.arange(count)),
        "indices": np.arange(count),
        "transform": PadCrop(padding=2, flip=True),
        "augment": True,
        "shuffle": True,
        "batch_size": 8,
        "mean": (0.0, 0.0, 0.0),
        "std": ONES,
        "seed": 3,
    }
    return Feed(**{**fields, **changed})  # type: ignore[arg-type]


def by_label(pipeline: InputPipeline, epoch: int) -> dict[int, torch.Tensor]:
    return {
        int(label): image
        for x, y in pipeline.epoch(epoch)
        for image, label in zip(x, y, strict=True)
    }


@pytest.mark.parametrize(
    ("images", "size", "batches", "kept"),
    [(24, 8, 3, 24), (25, 8, 3, 24), (26, 8, 4, 26), (5, 8, 1, 5), (1, 8, 1, 1), (3, 1, 3, 3)],
)
def test_training_drops_only_a_last_batch_of_one(
    images: int, size: int, batches: int, kept: int
) -> None:
    pipeline = open_pipeline(arrays(images, batch_size=size))
    found = [y for _, y in pipeline.epoch(0)]
    assert (pipeline.images, pipeline.batches, pipeline.batch_size) == (kept, batches, size)
    assert len(found) == batches
    assert len(set(torch.cat(found).tolist())) == kept


def test_evaluation_drops_nothing_and_keeps_the_order() -> None:
    pipeline = open_pipeline(arrays(25, augment=False, shuffle=False))
    labels = torch.cat([y for _, y in pipeline.epoch(4)])
    assert labels.tolist() == list(range(25))


def test_pad_crop_is_the_crop_and_flip_of_each_image() -> None:
    feed = arrays(50)
    assert isinstance(feed.source, Images)
    transform = PadCrop(padding=2, flip=True)
    draws = epoch_draws(0, 0, 50, 3)
    found = pad_crop(feed.source.pixels, transform, draws)
    for image, pixels, (row, column, flip) in zip(found, feed.source.pixels, draws, strict=True):
        framed = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
        top, left = int(row * 5), int(column * 5)
        expected = framed[:, top : top + 8, left : left + 8]
        np.testing.assert_array_equal(image, expected[..., ::-1] if flip < 0.5 else expected)


def test_an_image_depends_on_seed_and_epoch_but_not_on_its_batch() -> None:
    reference = by_label(open_pipeline(arrays(40)), epoch=2)
    torch.manual_seed(99)
    for changed in ({"batch_size": 5}, {"indices": np.arange(0, 40, 3)}, {"workers": 2}):
        found = by_label(open_pipeline(arrays(40, **changed)), epoch=2)
        assert all(torch.equal(image, reference[label]) for label, image in found.items())
    for other in (
        by_label(open_pipeline(arrays(40)), epoch=3),
        by_label(open_pipeline(arrays(40, seed=4)), epoch=2),
    ):
        same = sum(torch.equal(image, reference[label]) for label, image in other.items())
        assert same < 10


def test_torchs_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(open_pipeline(arrays(20)).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_an_epoch_goes_on_in_the_middle(start: int) -> None:
    pipeline = open_pipeline(arrays(31))
    whole = list(pipeline.epoch(5))
    rest = list(pipeline.epoch(5, start))
    assert len(rest) == len(whole) - start
    for (x, y), (again, labels) in zip(whole[start:], rest, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)


def test_digits_shift_and_do_not_flip() -> None:
    splits = load_splits(DataOptions(validation=0), seed=0)
    feed = splits.train._feed  # type: ignore[attr-defined]
    assert feed.augment
    assert feed.transform == PadCrop(padding=2, flip=False)
    plain = load_splits(DataOptions(validation=0, augment=False), seed=0)
    assert not plain.train._feed.augment  # type: ignore[attr-defined]
    assert not splits.test._feed.augment  # type: ignore[attr-defined]


# Image files


def photographs(folder: Path, count: int) -> Files:
    """Smooth images of various sizes and kinds: colour, grey, palette, CMYK."""
    generator = np.random.default_rng(1)
    paths = []
    for i in range(count):
        small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((40 + 7 * (i % 4), 36 + 5 * (i % 3)))
        kind = ("RGB", "L", "P", "CMYK")[i % 4]
        path = folder / f"{i}.{'png' if kind == 'P' else 'jpg'}"
        image.convert(kind).save(path)
        paths.append(str(path))
    return Files(tuple(paths), np.arange(count))


def files(source: Files, **changed: object) -> Feed:
    count = len(source.paths)
    fields = {"source": source, "transform": ResizedCrop(24, 28), "batch_size": 4, "workers": 0}
    return arrays(count, **{**fields, **changed})


def test_workers_and_batches_change_no_image(tmp_path: Path) -> None:
    source = photographs(tmp_path, 11)
    alone = open_pipeline(files(source))
    two = open_pipeline(files(source, workers=2))
    for epoch in (0, 1):
        whole = list(alone.epoch(epoch))
        for (x, y), (again, labels) in zip(whole, two.epoch(epoch), strict=True):
            assert torch.equal(x, again)
            assert torch.equal(y, labels)
    # The workers are in the middle of an epoch when it is left for another.
    next(two.epoch(0))
    resumed = list(two.epoch(1, start=2))
    two.close()
    assert len(resumed) == 1
    assert torch.equal(resumed[0][0], whole[2][0])
    reference = by_label(alone, 1)
    for label, image in by_label(open_pipeline(files(source, batch_size=3)), 1).items():
        assert torch.equal(image, reference[label])
    assert x.dtype == torch.float32
    assert x.shape[1:] == (3, 24, 24)


def test_evaluation_is_resize_and_centre_crop(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    source = photographs(tmp_path, 6)
    pipeline = open_pipeline(files(source, augment=False, shuffle=False))
    reference = v2.Compose([v2.Resize(28), v2.CenterCrop(24), v2.PILToTensor()])
    found = by_label(pipeline, 0)
    for label, path in enumerate(source.paths):
        expected = reference(Image.open(path).convert("RGB"))
        torch.testing.assert_close(found[label], expected.float(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_file_is_named_on_one_line(tmp_path: Path, workers: int) -> None:
    source = photographs(tmp_path, 6)
    whole = Path(source.paths[4]).read_bytes()
    Path(source.paths[4]).write_bytes(whole[: len(whole) // 2])
    pipeline = open_pipeline(files(Files(source.paths, source.labels), workers=workers))
    with pytest.raises(DataError, match=r"4\.jpg: not a readable image: ") as caught:
        list(pipeline.epoch(0))
    assert "\n" not in str(caught.value)


def test_random_parts_lie_inside_and_have_the_wanted_areas_and_shapes() -> None:
    transform = ResizedCrop(224, 256)
    generator = np.random.default_rng(0)
    boxes = [random_box(480, 640, transform, generator) for _ in range(2000)]
    tops, lefts, heights, widths = (np.array(side) for side in zip(*boxes, strict=True))
    assert (tops >= 0).all()
    assert (lefts >= 0).all()
    assert (tops + heights <= 480).all()
    assert (lefts + widths <= 640).all()
    area = heights * widths / (480 * 640)
    assert 0.079 < area.min() < 0.1
    assert area.max() > 0.9
    assert (widths / heights).min() > 0.74
    assert (widths / heights).max() < 1.35


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_a_very_narrow_image_gives_its_centre(height: int, width: int) -> None:
    transform = ResizedCrop(8, 9, scale=(0.9, 1.0))
    top, left, h, w = random_box(height, width, transform, np.random.default_rng(0))
    assert min(h, w) == 10
    assert max(h, w) == 13
    assert top + left in (493, 494)
