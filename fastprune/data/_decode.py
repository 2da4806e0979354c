"""Reading one image file: its bytes, the RGB a viewer shows of it, or what is wrong with it."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

__all__ = [
    "DECODER",
    "Bad",
    "Unusable",
    "as_rgb",
    "decode",
    "image_size",
    "read_bytes",
    "read_image",
]

DECODER = f"1 Pillow {PIL.__version__} libjpeg {features.version('jpg')}"
"""What pixels follow from besides the file; its first number is raised when this file changes
them."""

_WHOLE = 65535

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on broken files of its various formats."""


class Bad(NamedTuple):
    """A file whose content is no readable image.

    Such things are handed over as values: an exception would arrive from a worker process wrapped
    in its traceback.
    """

    path: str
    reason: str


class Unusable(NamedTuple):
    """A file that says nothing about its image: it changed, is gone, or cannot be read here."""

    path: str
    reason: str


def read_image(path: str, size: int, time: int) -> Image.Image | Bad | Unusable:
    """An image in RGB, of its own size.

    Args:
        path: the file.
        size: bytes it had when it was listed.
        time: nanoseconds of its modification then.
    """
    content = read_bytes(path, size, time)
    return content if isinstance(content, Unusable) else decode(path, content)


def read_bytes(path: str, size: int, time: int) -> bytes | Unusable:
    """A file's content, if it is still the file that was listed; arguments as of `read_image`."""
    try:
        with open(path, "rb") as stream:
            content = stream.read()
            # After reading, so that a file written to meanwhile is noticed.
            now = os.fstat(stream.fileno())
    except FileNotFoundError:
        return Unusable(path, _changed("it is gone"))
    except OSError as error:
        return Unusable(path, f"cannot be read: {error.strerror}")
    if now.st_size != size or len(content) != size:
        return Unusable(path, _changed(f"it had {size:,} bytes, and has {now.st_size:,}"))
    if now.st_mtime_ns != time:
        return Unusable(path, _changed("it was written to"))
    return content


def decode(path: str, content: bytes) -> Image.Image | Bad:
    """The image in a file's content, by Pillow, which takes a truncated file for a broken one.

    Of several frames it is the first. Orientation in a JPEG's EXIF data is not applied, as it is
    not by torchvision's ``ImageFolder``.
    """
    try:
        with Image.open(BytesIO(content)) as opened:
            return as_rgb(opened)
    except UnidentifiedImageError:
        return Bad(path, "in no format that Pillow reads" if content else "the file is empty")
    except _BROKEN as error:
        return Bad(path, " ".join(str(error).split()).rstrip("."))


def image_size(path: str) -> tuple[int, int] | None:
    """Height and width that a file's header says; None where it is no image or not there."""
    try:
        with Image.open(path) as opened:
            return opened.height, opened.width
    except _BROKEN:
        return None


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened image in RGB: 16 bits a channel are brought to 8, and what is transparent shows
    white, as on a page.

    Raises:
        ValueError: its channels have 32 bits, of which nothing says which value is white.
    """
    clear = image.info.get("transparency")
    # Pillow has 16-bit PGM as 32-bit integers. Its own conversion of either clips at 255.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        grey = ((values * 255 + _WHOLE // 2) // _WHOLE).astype(np.uint8)
        if isinstance(clear, int):
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel; expected 8 or 16")
    if clear is not None or image.mode in ("LA", "PA", "RGBA"):
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _changed(what: str) -> str:
    return (
        f"changed since the run began ({what}); images must stay as they are while a run reads "
        "them"
    )
