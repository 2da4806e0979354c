"""Going on with fewer images at a time where memory is too small for a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["InHalves"]

T = TypeVar("T")


class InHalves:
    """Work on images, done for half of them at a time, and half of these, until they fit.

    Args:
        say: told when fewer go on.

    Attributes:
        most: images at a time; None as long as all fit.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self.most: int | None = None

    def parts(self, function: Callable[[Tensor], T], x: Tensor) -> list[T]:
        """What a function gives for all images, of one part of them after the other.

        Args:
            function: what it gives for an image does not depend on the others of its batch.
            x: ``[N, ...]``.

        Raises:
            torch.OutOfMemoryError: one image alone is too many.
        """
        while True:
            try:
                if self.most is None or len(x) <= self.most:
                    return [function(x)]
                return [function(part) for part in torch.split(x, self.most)]
            except torch.OutOfMemoryError:
                before = min(len(x), self.most or len(x))
                if before == 1:
                    raise
            # Outside of the handler, which keeps what the call had made.
            self.most = before // 2
            if x.device.type == "cuda":
                torch.cuda.empty_cache()
            self._say(
                f"memory is too small for {before} images at a time; going on with {self.most}"
            )
