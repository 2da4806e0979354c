"""Which images each batch of an epoch has: the order, its part of a rank, and the bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastprune.data._draws import epoch_order, stratified_order, weighted_order

if TYPE_CHECKING:
    from fastprune.data._pipeline import Feed

__all__ = ["Batches", "ClassDraw"]


@dataclass(frozen=True, slots=True)
class ClassDraw:
    """Drawing the images of an epoch with repetition, those of some classes more often.

    Attributes:
        classes: their labels.
        ratio: how many times as often an image of theirs is drawn as one of another class.
    """

    classes: tuple[int, ...]
    ratio: float


class Batches:
    """Order, batch bounds and counts, which every implementation shares.

    With several ranks, rank r takes every world-th image from the r-th on. In training each has as
    many, and the few that are left over sit an epoch out; evaluation leaves none out, and the last
    ranks may have one image less.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        size, total = feed.batch_size, len(feed.indices)
        images = total // feed.world if feed.shuffle else len(range(feed.rank, total, feed.world))
        # A batch of one image has no variance: batch norm in training mode refuses it.
        single = feed.shuffle and size > 1 and images > size and images % size == 1
        self.images = images - 1 if single else images
        self.batches = -(-self.images // size)
        self.batch_size = size
        labels = feed.source.labels[feed.indices]
        self.highest_label = int(labels.max()) if len(labels) else -1

    def chunks(
        self, epoch: int, start: int, *, spread: bool = False, draw: ClassDraw | None = None
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Image indices of each batch of an epoch from batch ``start`` on.

        Args:
            epoch: number of the epoch.
            start: number of the batch.
            spread: as in `InputPipeline.epoch`.
            draw: likewise.

        Raises:
            ValueError: ``start`` is below 0, or images for evaluation are to be drawn.
        """
        # Here and not at the first batch: worker processes would be started for nothing.
        if start < 0:
            raise ValueError(f"start: expected 0 to {self.batches}, got {start}")
        if draw is not None and not self._feed.shuffle:
            raise ValueError("draw: expected None for images that are not shuffled")
        return self._chunks(epoch, start, spread, draw)

    def _chunks(
        self, epoch: int, start: int, spread: bool, draw: ClassDraw | None
    ) -> Iterator[npt.NDArray[np.int64]]:
        feed = self._feed
        order = feed.indices
        if draw is not None:
            wanted = np.isin(feed.source.labels[order], draw.classes)
            order = weighted_order(order, np.where(wanted, draw.ratio, 1.0), feed.seed, epoch)
        elif feed.shuffle:
            order = epoch_order(order, feed.seed, epoch)
        elif spread:
            order = order[stratified_order(feed.source.labels[order], feed.seed)]
        mine = order[feed.rank :: feed.world]
        for batch in range(start, self.batches):
            first = batch * self.batch_size
            yield mine[first : min(first + self.batch_size, self.images)]
