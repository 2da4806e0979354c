"""How fast an epoch goes, and how much of it is waiting for the next batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["Pace"]

T = TypeVar("T")


class Pace:
    """Images, seconds, and the seconds of them in which the next batch was waited for.

    Args:
        clock: seconds, from any start.

    Attributes:
        images: so far.
        waited: seconds for batches, so far.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._before, self._begun = 0.0, clock()
        self.images, self.waited = 0, 0.0

    def of(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time that each is waited for."""
        source = iter(batches)
        while True:
            begun = self._clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self.waited += self._clock() - begun
            yield batch

    @property
    def seconds(self) -> float:
        """So far, those before an interruption too."""
        return self._before + self._clock() - self._begun

    def figures(self) -> dict[str, float]:
        """``images_per_second``, and ``data_wait``: waited / all seconds, 0 to 1."""
        seconds = max(self.seconds, 1e-9)
        return {"images_per_second": self.images / seconds, "data_wait": self.waited / seconds}

    def state_dict(self) -> dict[str, float]:
        """What ``load_state_dict`` needs to go on."""
        return {"seconds": self.seconds, "waited": self.waited, "images": self.images}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a state, now: what lies between does not count."""
        self._before, self._begun = state["seconds"], self._clock()
        self.waited, self.images = state["waited"], int(state["images"])
