"""Images in memory, held as bytes where the network is: one kernel makes a batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fastprune.data._batches import WHOLE, Batches, ClassDraw, Part
from fastprune.data._dataset import Images, PadCrop
from fastprune.data._draws import crop_boxes, epoch_draws
from fastprune.data._pipeline import Batch, Feed, InputPipeline, Kind, Placement
from fastprune.ops import crop_flip_normalize

__all__ = ["open_pipeline"]

_AS_IT_IS = Placement()


def open_pipeline(feed: Feed, source: Images) -> InputPipeline:
    """The pipeline for images in memory."""
    return _DevicePipeline(feed, source)


@dataclass(frozen=True, slots=True)
class _Resident:
    """What stays on a device.

    Attributes:
        pixels: uint8 ``[M, C, H, W]``.
        mean: float32 ``[C]``, on the scale of the pixels.
        std: likewise.
    """

    pixels: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


class _DevicePipeline(Batches):
    """Order and crops of an epoch go to the device once, and nothing more does."""

    kind: Kind = "device"
    bad_images: tuple[str, ...] = ()

    def __init__(self, feed: Feed, source: Images) -> None:
        super().__init__(feed)
        if not isinstance(feed.transform, PadCrop):
            raise ValueError(f"expected PadCrop for images in memory, got {feed.transform}")
        self._source, self._transform = source, feed.transform
        self._residents: dict[torch.device, _Resident] = {}

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
        device, feed = placement.device, self._feed
        if device not in self._residents:
            self._residents[device] = self._resident(device)
        held = self._residents[device]
        chunks = list(self.chunks(epoch, start, spread=spread, draw=draw, part=part))
        if not chunks:
            return
        # Images of the set: the labels, which are as many, are looked up by the same numbers.
        order = np.concatenate(chunks)
        labels = torch.from_numpy(self._source.labels[order]).to(device)
        boxes = None
        if feed.augment:
            draws = epoch_draws(feed.seed, epoch, int(feed.indices[-1]) + 1, 3)
            found = crop_boxes(draws[order], self._transform.padding, self._transform.flip)
            boxes = torch.from_numpy(found).to(device)
        if device.type != "cpu" and len(feed.indices) < len(self._source.labels):
            order = np.searchsorted(feed.indices, order)
        images = torch.from_numpy(order).to(device)
        ends = np.cumsum([len(chunk) for chunk in chunks]).tolist()
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = slice(first, end)
            x = crop_flip_normalize(
                held.pixels,
                images[rows],
                None if boxes is None else boxes[rows],
                mean=held.mean,
                std=held.std,
                padding=self._transform.padding,
                dtype=placement.dtype,
                channels_last=placement.channels_last,
            )
            # A copy: a batch's memory is its own.
            yield x, labels[rows].clone()

    def close(self) -> None:
        self._residents.clear()

    def _resident(self, device: torch.device) -> _Resident:
        feed, pixels = self._feed, self._source.pixels
        # Training and validation images of one set share a device: each brings its own part. On a
        # CPU nothing is brought anywhere.
        if device.type != "cpu" and len(feed.indices) < len(pixels):
            pixels = pixels[feed.indices]
        with warnings.catch_warnings():
            # torch warns of arrays that may not be written to, such as mapped files; nobody does.
            warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
            whole = torch.from_numpy(np.ascontiguousarray(pixels))
        return _Resident(
            whole.to(device),
            (torch.tensor(feed.mean) * 255).to(device),
            (torch.tensor(feed.std) * 255).to(device),
        )
