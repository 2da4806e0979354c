"""JPEG files for benchmarks of pipelines where there are no real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from fastprune.data import Files

__all__ = ["photographs"]


def photographs(folder: Path, count: int) -> Files:
    """JPEGs whose size, detail and bytes are those of photographs of 256 pixels: about 20 kB."""
    generator = np.random.default_rng(0)
    for i in range(count):
        size = (256, int(generator.integers(256, 400)))
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        grain = generator.normal(0, 12, image.shape)
        noisy = Image.fromarray((image + grain).clip(0, 255).astype(np.uint8))
        noisy.filter(ImageFilter.GaussianBlur(0.7)).save(folder / f"{i:04}.jpg", quality=90)
    return Files(tuple(sorted(map(str, folder.iterdir()))), np.arange(count))
