"""Batches out of the cache of decoded images: their centres, or random parts of whole ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fastprune.data._bad import BadImages
from fastprune.data._batches import WHOLE, Batches, ClassDraw, Part
from fastprune.data._cache import Cache, Damaged, Decoded, open_cache
from fastprune.data._dataset import ResizedCrop
from fastprune.data._draws import image_generator
from fastprune.data._encoded import random_cut
from fastprune.data._pipeline import Batch, Feed, InputPipeline, Kind, Placement
from fastprune.data._room import unsupported
from fastprune.data._telling import SILENT, Teller
from fastprune.errors import DataError
from fastprune.ops import crop_flip_normalize, resized_crop

__all__ = ["open_decoded", "unsupported"]

_AS_IT_IS = Placement()
_SHARE = 4
"""The images lie on the device if they take no more than one part in this of its free memory."""

_CPU = torch.device("cpu")


def open_decoded(feed: Feed, teller: Teller = SILENT) -> InputPipeline:
    """The pipeline of decoded images; they are decoded when an epoch first asks for them.

    Raises:
        DataError: the feed's images are not kept decoded; the message says why.
    """
    reason = unsupported(feed)
    if reason is not None:
        raise DataError(f"data.pipeline: device cannot feed these images: {reason}")
    return _DecodedPipeline(feed, teller)


class _DecodedPipeline(Batches):
    """Rows of a mapped file, normalised; on a GPU from its own memory where they fit.

    Attributes:
        reason: where the images lie.
    """

    kind: Kind = "device"

    def __init__(self, feed: Feed, teller: Teller) -> None:
        super().__init__(feed)
        if not isinstance(feed.transform, ResizedCrop):
            raise ValueError(f"expected ResizedCrop for image files, got {feed.transform}")
        self._transform = feed.transform
        self._teller = teller
        self._bad = BadImages(feed.max_bad_images, teller)
        self._cache: Cache | None = None
        # For which device it was decided where the images lie; None before.
        self._device: torch.device | None = None
        self._resident: Decoded | None = None
        self._mean = torch.tensor(feed.mean) * 255
        self._std = torch.tensor(feed.std) * 255
        self.reason = f"decoded once, then mapped from {feed.cache}"

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
        feed = self._feed
        for chunk in self.chunks(epoch, start, spread=spread, draw=draw, part=part):
            rows = self._readable(np.searchsorted(feed.indices, chunk))
            if not len(rows):
                continue
            if feed.augment:
                x = self._parts(epoch, rows, placement)
            else:
                x = self._centres(rows, placement)
            y = torch.from_numpy(feed.source.labels[feed.indices[rows]])
            yield x, y.to(placement.device, non_blocking=True)

    def close(self) -> None:
        self._cache = self._device = self._resident = None

    def _centres(self, rows: npt.NDArray[np.int64], placement: Placement) -> torch.Tensor:
        device, shape = placement.device, (-1, 3, self._transform.size, self._transform.size)
        found, chosen = self._on(device, rows), torch.from_numpy(rows)
        if found is None:
            pixels = _sent(self._here(rows).pixels.view(shape)[chosen], device)
            chosen = torch.arange(len(rows), device=device)
        else:
            pixels, chosen = found.pixels.view(shape), _sent(chosen, device)
        return crop_flip_normalize(
            pixels,
            chosen,
            None,
            mean=self._mean.to(device),
            std=self._std.to(device),
            dtype=placement.dtype,
            channels_last=placement.channels_last,
        )

    def _parts(
        self, epoch: int, rows: npt.NDArray[np.int64], placement: Placement
    ) -> torch.Tensor:
        device = placement.device
        found = self._on(device, rows)
        if found is None:
            # Made here and sent: a batch of whole images would be of about as many bytes.
            device, found = _CPU, self._here(rows)
        x = resized_crop(
            found.pixels,
            found.starts,
            found.sizes,
            _sent(torch.from_numpy(rows), device),
            _sent(torch.from_numpy(self._boxes(epoch, rows)), device),
            size=self._transform.size,
            mean=self._mean.to(device),
            std=self._std.to(device),
            dtype=placement.dtype,
            channels_last=placement.channels_last,
        )
        return _sent(x, placement.device)

    def _boxes(self, epoch: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """``[n, 5]``: the parts that every pipeline cuts, on the scale of what is kept."""
        feed, cache = self._feed, self._opened()
        own = cache.own_sizes[rows]
        boxes = np.empty((len(rows), 5), np.int64)
        images = feed.indices[rows].tolist()
        for place, ((height, width), image) in enumerate(zip(own.tolist(), images, strict=True)):
            generator = image_generator(feed.seed, epoch, image)
            cut = random_cut(height, width, self._transform, generator)
            boxes[place] = *cut.box, cut.flip
        kept = cache.decoded.sizes.numpy()[rows]
        boxes[:, :4] = _scaled(boxes[:, :4], own, kept)
        return boxes.astype(np.int32)

    def _opened(self) -> Cache:
        if self._cache is None:
            self._cache = open_cache(self._feed, self._teller, self._bad)
        return self._cache

    def _readable(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rows of a batch that are images."""
        holes = self._opened().bad
        if not holes:
            return rows
        bad = [holes[row] for row in rows.tolist() if row in holes]
        self._bad.add(bad)
        rows = rows[~np.isin(rows, list(holes))]
        self._bad.leaves(len(rows), bad, training=self._feed.shuffle)
        return rows

    def _checked(self, rows: npt.NDArray[np.int64]) -> Cache:
        cache = self._opened()
        try:
            cache.check(rows)
        except Damaged as error:
            self._teller.note(f"{error}; decoding again")
            cache.path.unlink(missing_ok=True)
            self.close()
            cache = self._opened()
            cache.check(rows)
        return cache

    def _here(self, rows: npt.NDArray[np.int64]) -> Decoded:
        return self._checked(rows).decoded

    def _on(self, device: torch.device, rows: npt.NDArray[np.int64]) -> Decoded | None:
        """All images on the device, of which the rows are checked; None where they are not."""
        if device.type == "cpu":
            return self._here(rows)
        if self._device != device:
            self._device, self._resident = device, self._moved(device)
        return self._resident

    def _moved(self, device: torch.device) -> Decoded | None:
        """All images on the device, if they fit."""
        if device.type != "cuda":
            return None
        needed = self._opened().decoded.pixels.nbytes
        free = torch.cuda.mem_get_info(device)[0]
        if needed > free // _SHARE:
            self.reason = (
                f"decoded once, then mapped from {self._feed.cache}; {needed / 1e9:.1f} GB are "
                f"more than a quarter of the {free / 1e9:.1f} GB that are free on {device}"
            )
            return None
        found = self._here(np.arange(len(self._feed.indices)))
        self.reason = f"decoded once, {needed / 1e9:.1f} GB on {device}"
        return found.to(device)


def _scaled(
    boxes: npt.NDArray[np.int64], own: npt.NDArray[np.int32], kept: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Parts of images, of at least a pixel, once the images have other heights and widths.

    Args:
        boxes: ``[n, 4]``: top, left, height, width.
        own: ``[n, 2]``, the sizes that the boxes are on the scale of.
        kept: ``[n, 2]``, the other sizes.
    """
    first = np.rint(boxes[:, :2] * (kept / own)).astype(np.int64)
    last = np.rint((boxes[:, :2] + boxes[:, 2:]) * (kept / own)).astype(np.int64)
    first = np.minimum(first, kept - 1)
    return np.hstack([first, np.maximum(last - first, 1)])


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
