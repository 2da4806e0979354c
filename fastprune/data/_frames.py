"""Which part of an image is used, and that part at its final size."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional

from fastprune.data._dataset import ResizedCrop
from fastprune.data._window import is_vast, window

__all__ = ["centre_of", "framed", "random_box", "shrunk"]


def framed(
    image: Image.Image, transform: ResizedCrop, generator: np.random.Generator | None
) -> Image.Image:
    """The part of an image that is used, at its final size; at random with a generator."""
    size = [transform.size, transform.size]
    if generator is None:
        new, corner = centre_of(image.height, image.width, transform)
        if is_vast((image.height, image.width), new, transform.size):
            return window(image, new, corner, transform.size)
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


def centre_of(
    height: int, width: int, transform: ResizedCrop
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width that an image is brought to for evaluation, and row and column, in there,
    where the square that is cut out begins; rounded as torchvision rounds."""
    longer = int(transform.resize * max(height, width) / min(height, width))
    new = (longer, transform.resize) if width <= height else (transform.resize, longer)
    top, left = (round((side - transform.size) / 2.0) for side in new)
    return new, (top, left)


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
