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

__all__ = ["WHOLE", "Batches", "ClassDraw", "Part", "Portion"]


@dataclass(frozen=True, slots=True)
class ClassDraw:
    """Drawing the images of an epoch with repetition, those of some classes more often.

    Attributes:
        classes: their labels.
        ratio: how many times as often an image of theirs is drawn as one of another class.
    """

    classes: tuple[int, ...]
    ratio: float


@dataclass(frozen=True, slots=True)
class Portion:
    """How much of an epoch a process sees.

    Attributes:
        images: in all.
        batches: into which they are divided.
        batch_size: images of every batch but the last.
    """

    images: int
    batches: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one of several processes sees of an epoch.

    Taken apart, each batch is shared out: rank r has every world-th of its images from the r-th
    on, so that all ranks together see in each batch what one process alone sees in it. Dealt, rank
    r has every world-th batch from the r-th on, whole.

    Attributes:
        rank: which.
        world: how many processes there are.
        dealt: whether batches are dealt out whole, as for evaluation; otherwise taken apart, as
            for training.
        batch_size: images of a batch of all ranks together; None is the pipeline's own.
    """

    rank: int = 0
    world: int = 1
    dealt: bool = False
    batch_size: int | None = None

    def all_of(self, images: int, batch_size: int) -> Portion:
        """What all ranks see, of ``images`` in batches of ``batch_size`` by themselves.

        Batches that are taken apart have two images for each rank, since batch norm in training
        mode refuses one alone; a smaller last one sits the epoch out.
        """
        size = self.batch_size or batch_size
        if not self.dealt and self.world > 1 and images > size and images % size < 2 * self.world:
            images -= images % size
        return Portion(images, -(-images // size), size)

    def of(self, images: int, batch_size: int) -> Portion:
        """What this rank sees of it."""
        whole = self.all_of(images, batch_size)
        if self.dealt:
            mine = range(self.rank, whole.batches, self.world)
            ends = [min((k + 1) * whole.batch_size, whole.images) for k in mine]
            total = sum(end - k * whole.batch_size for k, end in zip(mine, ends, strict=True))
            return Portion(total, len(mine), whole.batch_size)
        full, last = divmod(whole.images, whole.batch_size)
        size = len(range(self.rank, whole.batch_size, self.world))
        return Portion(full * size + len(range(self.rank, last, self.world)), whole.batches, size)

    def rows(self, whole: Portion, batch: int) -> slice:
        """Places in the order of an epoch that this rank's ``batch`` has."""
        number = batch * self.world + self.rank if self.dealt else batch
        first = number * whole.batch_size
        last = min(first + whole.batch_size, whole.images)
        return slice(first, last) if self.dealt else slice(first + self.rank, last, self.world)


WHOLE = Part()
"""All of it, in one process."""


class Batches:
    """Order, batch bounds and counts, which every implementation shares."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        size, images = feed.batch_size, len(feed.indices)
        # A batch of one image has no variance: batch norm in training mode refuses it.
        single = feed.shuffle and size > 1 and images > size and images % size == 1
        self.images = images - 1 if single else images
        self.batches = -(-self.images // size)
        self.batch_size = size
        labels = feed.source.labels[feed.indices]
        self.highest_label = int(labels.max()) if len(labels) else -1

    def chunks(
        self,
        epoch: int,
        start: int,
        *,
        spread: bool = False,
        draw: ClassDraw | None = None,
        part: Part = WHOLE,
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Image indices of each batch of an epoch from batch ``start`` on.

        Args:
            epoch: number of the epoch.
            start: number of the batch.
            spread: as in `InputPipeline.epoch`.
            draw: likewise.
            part: likewise.

        Raises:
            ValueError: ``start`` is below 0, or images for evaluation are to be drawn.
        """
        # Here and not at the first batch: worker processes would be started for nothing.
        if start < 0:
            raise ValueError(f"start: expected 0 to {self.batches}, got {start}")
        if draw is not None and not self._feed.shuffle:
            raise ValueError("draw: expected None for images that are not shuffled")
        return self._chunks(epoch, start, spread, draw, part)

    def _chunks(
        self, epoch: int, start: int, spread: bool, draw: ClassDraw | None, part: Part
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
        whole = part.all_of(self.images, self.batch_size)
        for batch in range(start, part.of(self.images, self.batch_size).batches):
            yield order[part.rows(whole, batch)]
