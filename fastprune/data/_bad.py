"""Counting the image files that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastprune.data._decode import Bad
from fastprune.data._telling import Teller
from fastprune.errors import DataError

__all__ = ["BadImages"]


class BadImages:
    """The unreadable files of a pipeline, each told of once.

    Args:
        most: how many there may be.
        teller: told of each file that is left out.

    Attributes:
        names: those found so far.
    """

    def __init__(self, most: int, teller: Teller) -> None:
        self._most, self._teller = most, teller
        self.names: tuple[str, ...] = ()

    def add(self, found: Iterable[Bad]) -> None:
        """Counts files.

        Raises:
            DataError: there are more than may be.
        """
        for bad in found:
            if bad.path in self.names:
                continue
            if len(self.names) >= self._most:
                raise DataError(
                    f"{bad.path}: not a readable image: {bad.reason}; {self._advice()}"
                )
            self.names += (bad.path,)
            self._teller.note(f"{bad.path}: not a readable image, left out: {bad.reason}")

    def leaves(self, images: int, found: Sequence[Bad], *, training: bool) -> bool:
        """Whether anything is left of a batch that was found to have bad files.

        Raises:
            DataError: nothing is left for a training step, and steps are counted.
        """
        if training and found and not images:
            raise DataError(
                f"{found[0].path}: none of the {len(found)} images of a training batch can be "
                f"read: {found[0].reason}; mend or remove them"
            )
        return images > 0

    def _advice(self) -> str:
        if not self.names:
            return "mend or remove it, or let data.max_bad_images files be left out"
        return (
            f"it is one more than data.max_bad_images={self._most} allows, after "
            + ", ".join(self.names[:5])
            + (", …" if len(self.names) > 5 else "")
        )
