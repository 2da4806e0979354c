"""Squares out of enlarged images, beside the plain way: all of it, then the cut."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import feed_of, listed
from PIL import Image
from torchvision.transforms.v2 import functional

from fastprune.data import ResizedCrop
from fastprune.data._choice import open_pipeline
from fastprune.data._frames import centre_of, framed
from fastprune.data._window import is_vast, window


def noise(height: int, width: int) -> Image.Image:
    generator = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def plain(image: Image.Image, transform: ResizedCrop) -> np.ndarray:
    resized = functional.resize(image, [transform.resize])
    return np.asarray(functional.center_crop(resized, [transform.size] * 2))


def shapes() -> Iterator[tuple[int, int]]:
    generator = np.random.default_rng(0)
    yield from ((1, 1), (1, 90), (90, 1), (2, 3), (28, 28), (27, 28), (28, 27), (5, 400), (400, 5))
    for _ in range(200):
        height, width = np.exp(generator.uniform(0, np.log(28), 2)).round().astype(int)
        yield int(height), int(width)


@pytest.mark.parametrize("transform", [ResizedCrop(24, 28), ResizedCrop(29, 29)])
def test_ordinary_images_come_out_to_the_bit(transform: ResizedCrop) -> None:
    for height, width in shapes():
        image = noise(height, width)
        new, corner = centre_of(height, width, transform)
        found = np.asarray(window(image, new, corner, transform.size))
        np.testing.assert_array_equal(found, plain(image, transform), err_msg=f"{height}x{width}")


def test_photographs_come_out_to_the_bit(fastprune_data: Path) -> None:
    transform = ResizedCrop(448, 512)
    for path in sorted((fastprune_data / "hymenoptera-256" / "val").rglob("*.jpg"))[:8]:
        image = Image.open(path).convert("RGB")
        new, corner = centre_of(image.height, image.width, transform)
        found = np.asarray(window(image, new, corner, transform.size))
        np.testing.assert_array_equal(found, plain(image, transform))


@pytest.mark.parametrize(("height", "width"), [(10, 900), (900, 10), (3, 700), (23, 1000)])
def test_thin_images_are_cut_first_and_look_the_same(height: int, width: int) -> None:
    transform = ResizedCrop(24, 28)
    image = noise(height, width)
    new, _ = centre_of(height, width, transform)
    assert is_vast((height, width), new, transform.size)
    np.testing.assert_array_equal(
        np.asarray(framed(image, transform, None)), plain(image, transform)
    )


def test_what_is_not_enlarged_is_left_to_pillow() -> None:
    assert not is_vast((300, 90_000), (256, 76_800), 224)
    assert not is_vast((100, 100), (256, 256), 224)
    assert not is_vast((10, 60_000), (256, 1_536_000), 288)
    assert is_vast((10, 60_000), (256, 1_536_000), 224)


def peak_memory() -> int:
    """Bytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", ["torchvision", "device", "dali"])
def test_no_pipeline_enlarges_the_whole_of_a_thin_image(kind: str, tmp_path: Path) -> None:
    if kind == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    (tmp_path / "a").mkdir()
    images = [noise(10, 60_000), noise(60_000, 10)]
    # PNG is decoded by Pillow everywhere, and JPEG by DALI.
    for name, image in zip(("a.png", "b.png"), images, strict=True):
        image.save(tmp_path / "a" / name)
    images[0].save(tmp_path / "a" / "c.jpg", quality=95)
    transform = ResizedCrop(224, 256)
    feed = feed_of(
        listed(tmp_path / "a"),
        transform=transform,
        augment=False,
        shuffle=False,
        cache=tmp_path / "cache",
    )
    pipeline = open_pipeline(feed, kind)  # type: ignore[arg-type]
    before = peak_memory()
    ((x, _),) = pipeline.epoch(0)
    pipeline.close()
    # The whole of one takes 1.5 GB of Pillow's memory.
    assert peak_memory() - before < 500e6
    with Image.open(tmp_path / "a" / "c.jpg") as opened:
        images = [noise(10, 60_000), noise(60_000, 10), opened.convert("RGB")]
    expected = np.stack([np.asarray(framed(image, transform, None)) for image in images])
    assert torch.equal((x * 255).round().byte(), torch.from_numpy(expected).permute(0, 3, 1, 2))
