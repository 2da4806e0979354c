"""Input pipelines on torch, torchvision and PIL: arrays in memory, and image files by workers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from fastprune.data._bad import BadImages
from fastprune.data._batches import WHOLE, Batches, ClassDraw, Part
from fastprune.data._dataset import Images, PadCrop
from fastprune.data._draws import crop_boxes, epoch_draws
from fastprune.data._frames import random_box
from fastprune.data._pipeline import Batch, Feed, InputPipeline, Kind, Placement
from fastprune.data._telling import SILENT, Teller
from fastprune.data._workers import Workers, check_made, without_source
from fastprune.errors import DataError

__all__ = ["open_pipeline", "pad_crop", "random_box"]

_AS_IT_IS = Placement()


def open_pipeline(feed: Feed, teller: Teller = SILENT) -> InputPipeline:
    """The pipeline for a feed's kind of source; ``teller`` hears of files that are left out."""
    if isinstance(feed.source, Images):
        return _ImagesPipeline(feed, feed.source)
    return _FilesPipeline(feed, teller)


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
        self,
        epoch: int,
        start: int = 0,
        *,
        placement: Placement = _AS_IT_IS,
        spread: bool = False,
        draw: ClassDraw | None = None,
        part: Part = WHOLE,
    ) -> Iterator[Batch]:
        feed = self._feed
        draws = None
        if feed.augment:
            draws = epoch_draws(feed.seed, epoch, int(feed.indices[-1]) + 1, 3)
        for chunk in self.chunks(epoch, start, spread=spread, draw=draw, part=part):
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


class _FilesPipeline(Batches):
    """Image files, decoded and transformed by worker processes that stay between epochs."""

    kind: Kind = "torchvision"

    def __init__(self, feed: Feed, teller: Teller) -> None:
        super().__init__(feed)
        bare = without_source(feed)
        self._workers = Workers(feed, partial(_finished, feed=bare), self.batches)
        self._bad = BadImages(feed.max_bad_images, teller)
        self._under_way: object = None

    @property
    def bad_images(self) -> tuple[str, ...]:
        return self._bad.names

    def epoch(
        self,
        epoch: int,
        start: int = 0,
        *,
        placement: Placement = _AS_IT_IS,
        spread: bool = False,
        draw: ClassDraw | None = None,
        part: Part = WHOLE,
    ) -> Iterator[Batch]:
        # A new epoch takes the workers over: an older one must not take its batches.
        mine = self._under_way = object()
        for made in self._workers.batches(
            self.chunks(epoch, start, spread=spread, draw=draw, part=part), epoch
        ):
            try:
                some = check_made(made, self._bad, training=self._feed.shuffle)
            except DataError:
                self.close()
                raise
            if some:
                yield placement.of((made.pixels, made.labels))
            if self._under_way is not mine:
                return

    def close(self) -> None:
        self._workers.close()


def _finished(pixels: torch.Tensor, feed: Feed) -> torch.Tensor:
    """uint8 ``[N, H, W, C]`` -> float32 ``[N, C, H, W]``."""
    return _normalized(pixels.permute(0, 3, 1, 2).contiguous(), feed)
