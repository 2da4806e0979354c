"""Evaluation batches out of the cache of decoded images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fastprune.data._bad import BadImages
from fastprune.data._batches import Batches
from fastprune.data._cache import Cache, Damaged, open_cache, unsupported
from fastprune.data._pipeline import Batch, Feed, InputPipeline, Kind, Placement
from fastprune.data._telling import SILENT, Teller
from fastprune.errors import DataError
from fastprune.ops import crop_flip_normalize

__all__ = ["open_decoded", "unsupported"]

_AS_IT_IS = Placement()
_SHARE = 4
"""The images lie on the device if they take no more than one part in this of its free memory."""


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
        self._teller = teller
        self._bad = BadImages(feed.max_bad_images, teller)
        self._cache: Cache | None = None
        # For which device it was decided where the images lie; None before.
        self._device: torch.device | None = None
        self._resident: torch.Tensor | None = None
        self._mean = torch.tensor(feed.mean) * 255
        self._std = torch.tensor(feed.std) * 255
        self.reason = f"decoded once, then mapped from {feed.cache}"

    @property
    def bad_images(self) -> tuple[str, ...]:
        return self._bad.names

    def epoch(
        self, epoch: int, start: int = 0, *, placement: Placement = _AS_IT_IS
    ) -> Iterator[Batch]:
        feed = self._feed
        mean, std = (t.to(placement.device) for t in (self._mean, self._std))
        for chunk in self.chunks(epoch, start):
            rows, labels = self._readable(np.searchsorted(feed.indices, chunk))
            if not len(rows):
                continue
            pixels, chosen = self._rows(rows, placement.device)
            x = crop_flip_normalize(
                pixels,
                chosen,
                None,
                mean=mean,
                std=std,
                dtype=placement.dtype,
                channels_last=placement.channels_last,
            )
            y = torch.from_numpy(labels)
            yield x, y.to(placement.device, non_blocking=True)

    def close(self) -> None:
        self._cache = self._device = self._resident = None

    def _opened(self) -> Cache:
        if self._cache is None:
            self._cache = open_cache(self._feed, self._teller, self._bad)
        return self._cache

    def _readable(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The rows of a batch that are images, and their labels."""
        holes = self._opened().bad
        if holes:
            bad = [holes[row] for row in rows.tolist() if row in holes]
            self._bad.add(bad)
            rows = rows[~np.isin(rows, list(holes))]
        return rows, self._feed.source.labels[self._feed.indices[rows]]

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

    def _rows(
        self, rows: npt.NDArray[np.int64], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels on the device, and which of them make the batch."""
        if device.type == "cpu":
            return self._checked(rows).pixels, torch.from_numpy(rows)
        if self._device != device:
            self._device, self._resident = device, self._moved(device)
        if self._resident is not None:
            return self._resident, _sent(torch.from_numpy(rows), device)
        pixels = self._checked(rows).pixels[torch.from_numpy(rows)]
        return _sent(pixels, device), torch.arange(len(rows), device=device)

    def _moved(self, device: torch.device) -> torch.Tensor | None:
        """All images on the device, if they fit."""
        if device.type != "cuda":
            return None
        needed, free = self._opened().pixels.nbytes, torch.cuda.mem_get_info(device)[0]
        if needed > free // _SHARE:
            self.reason = (
                f"decoded once, then mapped from {self._feed.cache}; {needed / 1e9:.1f} GB are "
                f"more than a quarter of the {free / 1e9:.1f} GB that are free on {device}"
            )
            return None
        cache = self._checked(np.arange(len(self._feed.indices)))
        self.reason = f"decoded once, {needed / 1e9:.1f} GB on {device}"
        return cache.pixels.to(device)


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
