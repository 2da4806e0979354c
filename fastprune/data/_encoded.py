"""Image files for a decoder that makes only a part of the pixels: their bytes, and which part."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastprune.data._dataset import ResizedCrop
from fastprune.data._torchvision import random_box

__all__ = ["Cut", "Encoded", "Unreadable", "centre_cut", "decode", "random_cut", "read"]

# What PIL raises on broken files of its various formats.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_END_OF_JPEG = b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Cut:
    """How what a network gets comes out of an image.

    Attributes:
        box: top, left, height and width of the part that is decoded.
        resized: height and width that the part is brought to.
        corner: row and column, in there, of the final square's first pixel.
        flip: whether the part is mirrored left and right.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image, not yet decoded.

    Attributes:
        path: its file.
        data: ``[bytes]`` uint8: JPEG of one or three channels, or PPM.
        cut: what is to be made of it.
    """

    path: str
    data: npt.NDArray[np.uint8]
    cut: Cut


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is no image, and why."""

    path: str
    reason: str


CutOf = Callable[[int, int], Cut]
"""Height and width of an image -> what is to be made of it."""


def random_cut(
    height: int, width: int, transform: ResizedCrop, generator: np.random.Generator
) -> Cut:
    """A random part, and a flip one time in two: the generator's numbers in the order of all
    pipelines."""
    box = random_box(height, width, transform, generator)
    flip = transform.flip and bool(generator.random() < 0.5)
    return Cut(box, (transform.size, transform.size), flip=flip)


def centre_cut(height: int, width: int, transform: ResizedCrop) -> Cut:
    """The centre, after the shorter side is brought to ``transform.resize``; rounded as
    torchvision rounds."""
    size, resize = transform.size, transform.resize
    longer = int(resize * max(height, width) / min(height, width))
    resized = (longer, resize) if width <= height else (resize, longer)
    top, left = (round((side - size) / 2.0) for side in resized)
    if resized == (height, width):
        return Cut((top, left, size, size), (size, size))
    return Cut((0, 0, height, width), resized, (top, left))


def read(path: str, cut_of: CutOf) -> Encoded | Unreadable:
    """The bytes of an image file, and its cut.

    Complete JPEG files of one or three channels stay as they are. All others are decoded here and
    come as PPM of the part alone: so what a decoder says to CMYK, transparency, 16 bits or the end
    of a file that was cut off is what PIL says.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
        with Image.open(io.BytesIO(raw)) as image:
            cut = cut_of(image.height, image.width)
            if _left_to_decoder(image, raw):
                return Encoded(path, np.frombuffer(raw, np.uint8), cut)
            top, left, height, width = cut.box
            part = image.convert("RGB").crop((left, top, left + width, top + height))
    except _BROKEN as error:
        return Unreadable(path, _line(error))
    header = f"P6\n{width} {height}\n255\n".encode()
    data = np.frombuffer(header + part.tobytes(), np.uint8)
    return Encoded(path, data, Cut((0, 0, height, width), cut.resized, cut.corner, cut.flip))


def decode(path: str) -> Unreadable | None:
    """Reads every pixel of a file as strictly as PIL does; None where nothing is wrong."""
    try:
        with Image.open(path) as image:
            image.load()
    except _BROKEN as error:
        return Unreadable(path, _line(error))
    return None


def _left_to_decoder(image: Image.Image, raw: bytes) -> bool:
    """Whether it is an ordinary JPEG file.

    The end is looked for since a decoder that makes the first rows alone does not miss the last
    ones. Three channels that an Adobe marker declares to be RGB are left out: not every JPEG
    decoder of a GPU looks at that marker.
    """
    return (
        image.format == "JPEG"
        and image.mode in ("RGB", "L")
        and image.info.get("adobe_transform") != 0
        and raw.endswith(_END_OF_JPEG)
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
