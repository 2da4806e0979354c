"""A square out of an enlarged image, without the rest of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["is_vast", "window"]

# Pillow's weights of 8-bit pixels are integers of so many bits behind the point.
_BITS = 22
# Times the side of the square. There Pillow takes 4.9 ms for the whole, the square takes 1.6 ms.
_LONG = 16


def is_vast(old: tuple[int, int], new: tuple[int, int], size: int) -> bool:
    """Whether an image is far larger, once it is enlarged, than the square that is cut out of it.

    One of 60,000 x 10 pixels takes over a gigabyte when its shorter side is brought to 256. One
    that is not enlarged takes no more than it did.

    Args:
        old: height and width of the image.
        new: those that it is brought to.
        size: of the square.
    """
    enlarged = old[0] <= new[0] and old[1] <= new[1]
    return enlarged and min(new) >= size and max(new) > _LONG * size


def window(
    image: Image.Image, new: tuple[int, int], corner: tuple[int, int], size: int
) -> Image.Image:
    """A square out of an enlarged image, to the bit as Pillow's bilinear resize makes it.

    Args:
        image: RGB.
        new: height and width that it is brought to, no smaller than its own.
        corner: row and column, in there, of the square's first pixel.
        size: height and width of the square.
    """
    rows = _mixture(image.height, new[0], corner[0], size)
    columns = _mixture(image.width, new[1], corner[1], size)
    used = image.crop((columns.first, rows.first, columns.end, rows.end))
    # Pillow enlarges along the rows first, and rounds in between.
    across = _mixed(np.asarray(used).transpose(1, 0, 2), columns)
    return Image.fromarray(_mixed(across.transpose(1, 0, 2), rows))


class _Mixture(NamedTuple):
    """Which two old pixels each new one lies between, along one side.

    Attributes:
        first: the first old pixel that any of them needs.
        end: the one after the last.
        places: ``[2, n]`` int64, old pixels counted from ``first``.
        shares: ``[2, n]`` int64, 2**_BITS for both.
    """

    first: int
    end: int
    places: npt.NDArray[np.int64]
    shares: npt.NDArray[np.int64]


def _mixture(old: int, new: int, first: int, count: int) -> _Mixture:
    """Of ``count`` new pixels from ``first`` on, where ``old`` ones are brought to ``new``."""
    middles = (np.arange(first, first + count) + 0.5) * (old / new)
    low = np.floor(middles - 0.5).astype(np.int64)
    places = np.stack((low, low + 1))
    shares = ((1 - np.abs(places - middles + 0.5)) * 2**_BITS + 0.5).astype(np.int64)
    # Before the first pixel and behind the last one there is nothing but them.
    places = places.clip(0, old - 1)
    start = int(places.min())
    return _Mixture(start, int(places.max()) + 1, places - start, shares)


def _mixed(pixels: npt.NDArray[np.uint8], mixture: _Mixture) -> npt.NDArray[np.uint8]:
    """``[old, m, 3]`` -> ``[new, m, 3]``."""
    low, high = (
        pixels[places] * shares[:, None, None]
        for places, shares in zip(mixture.places, mixture.shares, strict=True)
    )
    return np.asarray((low + high + 2 ** (_BITS - 1)) >> _BITS, np.uint8)
