"""Input pipelines on torch, torchvision and PIL: arrays in memory, and image files by workers."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from fastprune.data._batches import Batches
from fastprune.data._dataset import Files, Images, PadCrop, ResizedCrop
from fastprune.data._draws import crop_boxes, epoch_draws, image_generator
from fastprune.data._pipeline import Batch, Feed, InputPipeline, Kind, Placement
from fastprune.errors import DataError

__all__ = ["open_pipeline"]

_MOST_WORKERS = 8
_AS_IT_IS = Placement()


def open_pipeline(feed: Feed) -> InputPipeline:
    """The pipeline for a feed's kind of source."""
    if isinstance(feed.source, Images):
        return _ImagesPipeline(feed, feed.source)
    return _FilesPipeline(feed, feed.source)


class _ImagesPipeline(Batches):
    """Images in memory: a batch is made at once, by strided copies in one thread."""

    kind: Kind = "torchvision"
    bad_images: tuple[str, ...] = ()

    def __init__(self, feed: Feed, source: Images) -> None:
        super().__init__(feed)
        if not isinstance(feed.transform, PadCrop):
            raise ValueError(f"expected PadCrop for images in memory, got {feed.transform}")
        self._source = source
        self._transform = feed.transform
        self._labels = torch.from_numpy(source.labels)

    def epoch(
        self, epoch: int, start: int = 0, *, placement: Placement = _AS_IT_IS
    ) -> Iterator[Batch]:
        feed = self._feed
        draws = None
        if feed.augment:
            draws = epoch_draws(feed.seed, epoch, int(feed.indices[-1]) + 1, 3)
        for chunk in self.chunks(epoch, start):
            pixels = self._source.pixels[chunk]
            if draws is not None:
                pixels = pad_crop(pixels, self._transform, draws[chunk])
            x, y = _normalized(torch.from_numpy(pixels), feed), self._labels[chunk]
            if placement.device.type == "cuda":
                x, y = x.pin_memory(), y.pin_memory()
            yield placement.of((x, y))

    def close(self) -> None:
        """Nothing is held open."""


def pad_crop(
    pixels: npt.NDArray[np.uint8], transform: PadCrop, draws: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Crops out of a black border, and flips, of a whole batch.

    Args:
        pixels: ``[N, C, H, W]``.
        transform: what is done.
        draws: ``[N, 3]`` uniform numbers: row, column, flip.
    """
    n, channels, height, width = pixels.shape
    pad = transform.padding
    framed = np.zeros((n, channels, height + 2 * pad, width + 2 * pad), np.uint8)
    framed[:, :, pad : pad + height, pad : pad + width] = pixels
    # Every crop is a view [C, H, W] at an offset of the frame; indexing copies one view an image.
    views = np.lib.stride_tricks.sliding_window_view(framed, (height, width), axis=(2, 3))
    boxes = crop_boxes(draws, pad, transform.flip)
    out = views[np.arange(n), :, boxes[:, 0], boxes[:, 1]]
    flipped = np.flatnonzero(boxes[:, 2])
    out[flipped] = out[flipped][..., ::-1]
    return np.ascontiguousarray(out)


def _normalized(pixels: torch.Tensor, feed: Feed) -> torch.Tensor:
    """uint8 ``[N, C, H, W]`` -> float32, (pixel / 255 - mean) / std."""
    mean = torch.tensor(feed.mean).view(-1, 1, 1) * 255
    std = torch.tensor(feed.std).view(-1, 1, 1) * 255
    return pixels.to(torch.float32).sub_(mean).div_(std)


@dataclass(frozen=True, slots=True)
class _Bad:
    """A file that could not be read: handed over as a value, since an exception would arrive from
    a worker wrapped in its traceback."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One image a worker is to make."""

    path: str
    label: int
    index: int
    epoch: int


class _Decoder:
    """What runs in the workers; it holds no list of files that each of them would copy."""

    def __init__(self, transform: ResizedCrop, feed: Feed) -> None:
        self._transform = transform
        empty = np.zeros(0, np.int64)
        self._feed = replace(feed, source=Files((), empty), indices=empty)

    def __getitems__(self, wanted: list[_Wanted]) -> Batch | _Bad:
        size = self._transform.size
        pixels = torch.empty((len(wanted), 3, size, size), dtype=torch.uint8)
        for row, item in enumerate(wanted):
            generator = None
            if self._feed.augment:
                generator = image_generator(self._feed.seed, item.epoch, item.index)
            try:
                with Image.open(item.path) as opened:
                    image = opened.convert("RGB")
            # What PIL raises on broken files of its various formats.
            except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
                return _Bad(item.path, " ".join(str(error).split()))
            image = _framed(image, self._transform, generator)
            pixels[row] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        labels = torch.tensor([item.label for item in wanted], dtype=torch.int64)
        return _normalized(pixels, self._feed), labels


def _framed(
    image: Image.Image, transform: ResizedCrop, generator: np.random.Generator | None
) -> Image.Image:
    """The part of an image that is used, at its final size."""
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


class _Requests:
    """The batch sampler of a loader that lives for many epochs: it lists what is asked for."""

    def __init__(self) -> None:
        self.batches: Iterator[list[_Wanted]] = iter(())

    def __iter__(self) -> Iterator[list[_Wanted]]:
        return self.batches


class _FilesPipeline(Batches):
    """Image files, decoded and transformed by worker processes that stay between epochs."""

    kind: Kind = "torchvision"
    bad_images: tuple[str, ...] = ()

    def __init__(self, feed: Feed, source: Files) -> None:
        super().__init__(feed)
        if not isinstance(feed.transform, ResizedCrop):
            raise ValueError(f"expected ResizedCrop for image files, got {feed.transform}")
        self._source = source
        self._decoder = _Decoder(feed.transform, feed)
        self._requests = _Requests()
        self._loader: DataLoader[Batch | _Bad] | None = None

    def epoch(
        self, epoch: int, start: int = 0, *, placement: Placement = _AS_IT_IS
    ) -> Iterator[Batch]:
        self._requests.batches = self._wanted(epoch, start)
        if self._loader is None:
            self._loader = self._open()
        for batch in self._loader:
            if isinstance(batch, _Bad):
                self.close()
                raise DataError(f"{batch.path}: not a readable image: {batch.reason}")
            yield placement.of(batch)

    def close(self) -> None:
        # Workers end when nothing refers to their loader any more.
        self._loader = None

    def _wanted(self, epoch: int, start: int) -> Iterator[list[_Wanted]]:
        paths, labels = self._source.paths, self._source.labels
        for chunk in self.chunks(epoch, start):
            yield [_Wanted(paths[i], int(labels[i]), int(i), epoch) for i in chunk]

    def _open(self) -> DataLoader[Batch | _Bad]:
        workers = self._feed.workers
        if workers is None:
            workers = min(_cores(), _MOST_WORKERS, self.batches)
        return DataLoader(
            self._decoder,  # type: ignore[arg-type]  # only __getitems__ is ever called
            batch_sampler=self._requests,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def _cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
