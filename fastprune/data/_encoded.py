"""Image files for a decoder that makes only a part of the pixels: their bytes, and which part."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastprune.data._dataset import ResizedCrop
from fastprune.data._decode import Bad, Unusable, decode, read_bytes
from fastprune.data._frames import centre_of, random_box
from fastprune.data._window import is_vast, window

__all__ = ["Cut", "CutOf", "Encoded", "centre_cut", "random_cut", "read"]

_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Cut:
    """How what a network gets comes out of an image.

    Attributes:
        box: top, left, height and width of the part that is decoded.
        resized: height and width that the part is brought to.
        size: height and width of the final square.
        corner: row and column, in there, of the final square's first pixel.
        flip: whether that square is mirrored left and right.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    size: int
    corner: tuple[int, int] = (0, 0)
    flip: bool = False

    @property
    def vast(self) -> bool:
        """Whether resizing takes far more memory than the square."""
        return is_vast(self.box[2:], self.resized, self.size)


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


CutOf = Callable[[int, int], Cut]
"""Height and width of an image -> what is to be made of it."""


def random_cut(
    height: int, width: int, transform: ResizedCrop, generator: np.random.Generator
) -> Cut:
    """A random part, and a flip one time in two: the generator's numbers in the order of all
    pipelines."""
    box = random_box(height, width, transform, generator)
    flip = transform.flip and bool(generator.random() < 0.5)
    return Cut(box, (transform.size, transform.size), transform.size, flip=flip)


def centre_cut(height: int, width: int, transform: ResizedCrop) -> Cut:
    """The centre, after the shorter side is brought to ``transform.resize``."""
    size = transform.size
    resized, corner = centre_of(height, width, transform)
    if resized == (height, width):
        return Cut((*corner, size, size), (size, size), size)
    return Cut((0, 0, height, width), resized, size, corner)


def read(path: str, size: int, time: int, cut_of: CutOf) -> Encoded | Bad | Unusable:
    """The bytes of an image file, and its cut.

    Complete JPEG files of one or three channels stay as they are. All others are decoded here and
    come as PPM of the part alone: so what a decoder says to CMYK, transparency, 16 bits or the end
    of a file that was cut off is what every pipeline says. Of images that would be far too large
    once they are resized it is PPM of the final square.

    Args:
        path: the file.
        size: bytes it had when it was listed.
        time: nanoseconds of its modification then.
        cut_of: what is to be made of it.
    """
    content = read_bytes(path, size, time)
    if isinstance(content, Unusable):
        return content
    shape = _left_to_decoder(content)
    cut = None if shape is None else cut_of(*shape)
    if cut is not None and not cut.vast:
        return Encoded(path, np.frombuffer(content, np.uint8), cut)
    image = decode(path, content)
    if isinstance(image, Bad):
        return image
    cut = cut_of(image.height, image.width)
    top, left, height, width = cut.box
    part = image.crop((left, top, left + width, top + height))
    if cut.vast:
        part = window(part, cut.resized, cut.corner, cut.size)
        cut = Cut((0, 0, cut.size, cut.size), (cut.size, cut.size), cut.size, flip=cut.flip)
    else:
        cut = replace(cut, box=(0, 0, height, width))
    header = f"P6\n{part.width} {part.height}\n255\n".encode()
    return Encoded(path, np.frombuffer(header + part.tobytes(), np.uint8), cut)


def _left_to_decoder(content: bytes) -> tuple[int, int] | None:
    """Height and width of an ordinary JPEG file; None of any other, or of a broken one.

    The end is looked for since a decoder that makes the first rows alone does not miss the last
    ones. Three channels that an Adobe marker declares to be RGB are left out: not every JPEG
    decoder of a GPU looks at that marker.
    """
    if not (content.startswith(_START_OF_JPEG) and content.endswith(_END_OF_JPEG)):
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            plain = image.format == "JPEG" and image.mode in ("RGB", "L")
            if not plain or image.info.get("adobe_transform") == 0:
                return None
            return image.height, image.width
    # Whatever is wrong, decoding says it.
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return None
