"""Dropping candidates that cannot be among the best, while their images come in; numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastprune.training._race import SURE, paired_z

__all__ = ["Racing", "Standing"]

LOOKS = 50
"""How often the images so far are looked at: more would drop a little earlier, and err oftener."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a candidate ended.

    Attributes:
        fitness: percent right. Of a dropped candidate that of the one it was dropped against, less
            by how much it was behind on the images that both saw: the first images of a split may
            be easy or hard, and their difference is not.
        images: that it saw.
        dropped: whether it was, before the last image.
    """

    fitness: float
    images: int
    dropped: bool


@dataclass(frozen=True, slots=True)
class _Drop:
    candidate: int
    bar: int
    images: int
    behind: float


class Racing:
    """A population whose images come batch by batch, in an order that is spread over the classes.

    At fifty points the candidate that is then in place ``leaders`` is the bar; one that got so
    many fewer of the same images right that it will not catch up on the others (McNemar's test,
    three standard deviations) is dropped. What counts is the result on these images and not on all
    that there might be, so of n images seen of N the standard deviation is the root of 1 - n/N
    times as large: the correction for a finite population (Cochran, *Sampling Techniques*, 1977,
    section 2.6). Ties are ranked by number.

    Args:
        candidates: how many.
        leaders: how many of the best have to be told apart from the rest; None drops nothing.
        images: of the split, at most.

    Attributes:
        remaining: candidates that take part, ascending.
    """

    def __init__(self, candidates: int, leaders: int | None, images: int) -> None:
        self.remaining = tuple(range(candidates))
        self._leaders, self._images = leaders, images
        self._right = np.zeros((candidates, images), bool)
        self._seen = 0
        self._looks = 0
        self._drops: list[_Drop] = []

    def add(self, right: npt.NDArray[np.bool_]) -> None:
        """Takes what the remaining candidates got right of the next images.

        Args:
            right: ``[remaining, N]``, in the order of `remaining`.
        """
        end = self._seen + right.shape[1]
        self._right[list(self.remaining), self._seen : end] = right
        self._seen = end
        looks = end * LOOKS // max(self._images, 1)
        if self._leaders is not None and self._looks < looks < LOOKS:
            self._looks = looks
            self._drop(self._leaders)

    def standings(self) -> list[Standing]:
        """Of all candidates, after the last image."""
        fitness = np.zeros(len(self._right))
        for candidate in self.remaining:
            fitness[candidate] = 100 * int(self._right[candidate].sum()) / max(self._seen, 1)
        images = np.full(len(self._right), self._seen)
        # A bar may have been dropped itself, later and against another.
        for drop in reversed(self._drops):
            fitness[drop.candidate] = max(0.0, fitness[drop.bar] - drop.behind)
            images[drop.candidate] = drop.images
        stayed = set(self.remaining)
        return [
            Standing(float(reached), int(seen), number not in stayed)
            for number, (reached, seen) in enumerate(zip(fitness, images, strict=True))
        ]

    def _drop(self, leaders: int) -> None:
        if len(self.remaining) <= leaders:
            return
        seen = self._right[:, : self._seen]
        ranked = sorted(self.remaining, key=lambda number: (-int(seen[number].sum()), number))
        bar = ranked[leaders - 1]
        sure = SURE * (1 - self._seen / self._images) ** 0.5
        lost = [n for n in ranked[leaders:] if paired_z(seen[bar], seen[n]) > sure]
        for number in lost:
            behind = 100 * (int(seen[bar].sum()) - int(seen[number].sum())) / self._seen
            self._drops.append(_Drop(number, bar, self._seen, behind))
        self.remaining = tuple(n for n in self.remaining if n not in set(lost))
