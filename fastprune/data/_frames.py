"""Which part of an image is used, and that part at its final size."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional

from fastprune.data._dataset import ResizedCrop

__all__ = ["framed", "random_box", "shrunk"]


def framed(
    image: Image.Image, transform: ResizedCrop, generator: np.random.Generator | None
) -> Image.Image:
    """The part of an image that is used, at its final size; at random with a generator."""
    size = [transform.size, transform.size]
    if generator is None:
        image = functional.resize(image, [transform.resize])
        cut: Image.Image = functional.center_crop(image, size)
        return cut
    top, left, height, width = random_box(image.height, image.width, transform, generator)
    cropped: Image.Image = functional.resized_crop(image, top, left, height, width, size)
    if transform.flip and generator.random() < 0.5:
        cropped = functional.horizontal_flip(cropped)
    return cropped


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """A whole image whose shorter side has at most ``side`` pixels; never enlarged."""
    if min(image.size) <= side:
        return image
    small: Image.Image = functional.resize(image, [side])
    return small


def random_box(
    height: int, width: int, transform: ResizedCrop, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part, by torchvision's rule for RandomResizedCrop.

    Ten tries to fit a part of a drawn area and shape, and if none fits the largest central part of
    an allowed shape.
    """
    low, high = (math.log(bound) for bound in transform.ratio)
    for _ in range(10):
        area = height * width * generator.uniform(*transform.scale)
        shape = math.exp(generator.uniform(low, high))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            return top, left, h, w
    h, w = height, width
    if width / height < transform.ratio[0]:
        h = min(height, round(width / transform.ratio[0]))
    elif width / height > transform.ratio[1]:
        w = min(width, round(height * transform.ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w
