"""What a dataset is: where its images are and what is done to them; and the registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastprune.data._options import DataOptions
from fastprune.errors import DataError
from fastprune.registry import Registry

__all__ = [
    "Dataset",
    "Files",
    "Images",
    "PadCrop",
    "ResizedCrop",
    "Source",
    "Transform",
    "registry",
]


@dataclass(frozen=True, slots=True)
class Images:
    """Images in memory, all of one size.

    Attributes:
        pixels: ``[N, C, H, W]`` uint8.
        labels: ``[N]`` int64.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"pixels: expected [N, C, H, W] uint8, got {self.pixels.shape} {self.pixels.dtype}"
            )
        if self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f"labels: expected {self.pixels.shape[:1]}, got {self.labels.shape}")


@dataclass(frozen=True, slots=True)
class Files:
    """Image files, of any size each, as they were when they were listed: now.

    Attributes:
        paths: ``[N]`` names.
        labels: ``[N]`` int64.
        stamps: ``[N, 2]`` int64, each file's size in bytes and time of modification in
            nanoseconds. A file that differs from them when it is read has changed meanwhile.

    Raises:
        DataError: a file is not there.
    """

    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    stamps: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.paths),):
            raise ValueError(f"labels: expected ({len(self.paths)},), got {self.labels.shape}")
        stamps = np.array([_stamp(path) for path in self.paths], np.int64).reshape(-1, 2)
        object.__setattr__(self, "stamps", stamps)


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: an image that cannot be read: {error.strerror}") from None
    return found.st_size, found.st_mtime_ns


Source = Images | Files


@dataclass(frozen=True, slots=True)
class PadCrop:
    """For images of one size: augmented, a crop of that size out of a black border, and a flip.

    Attributes:
        padding: width of the border in pixels, so shifts of -padding..padding.
        flip: mirror left and right, one time in two.
    """

    padding: int
    flip: bool


@dataclass(frozen=True, slots=True)
class ResizedCrop:
    """For images of any size: augmented, a random part of them; otherwise their centre.

    Attributes:
        size: height and width of what comes out.
        resize: for evaluation the shorter side is brought to this before the centre is cut out.
        scale: the part's share of the area, lowest and highest.
        ratio: the part's width / height, lowest and highest; uniform in its logarithm.
        flip: mirror left and right, one time in two.
    """

    size: int
    resize: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True


Transform = PadCrop | ResizedCrop


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset, before it is split and fed.

    Attributes:
        classes: names, in the order of the labels.
        input_shape: ``(C, H, W)`` of what a network gets.
        mean: usual normalisation, on the scale of 0 to 1.
        std: usual normalisation.
        transform: what augmentation and evaluation do to an image.
        train: reads the training images; only called when they are wanted.
        test: reads the test images.
    """

    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    transform: Transform
    train: Callable[[], Source]
    test: Callable[[], Source]


registry: Registry[Callable[[DataOptions], Dataset]] = Registry("datasets", "fastprune.data")


def check_size(options: DataOptions, size: int) -> None:
    """Refuses an ``image_size`` that a dataset of one size does not have."""
    if options.image_size not in (None, size):
        raise DataError(
            f"data.image_size: got {options.image_size}, but {options.name} has images of "
            f"{size}x{size}; leave it out"
        )
