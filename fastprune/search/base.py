"""What search algorithms share: a space of codes, candidates, ask and tell, codes over budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import BudgetError

__all__ = ["Candidate", "SearchAlgorithm", "Space", "draw", "repair", "uniform"]

# Rows of the first look down a path of lowered codes; each further look takes twice as many.
_FIRST_LOOK = 64


@dataclass(frozen=True, slots=True)
class Space:
    """Codes that a search may propose: one integer a dimension, both bounds included.

    Attributes:
        low: smallest value of each of D dimensions.
        high: largest value of each.
        feasible: codes ``[K, D]`` (int64) -> ``[K]`` (bool), which of them are within budget; None
            where all are. Lowering a code must not take it out of the budget.
        fill: whether codes are to use the budget up: `repair` raises each for as long as it fits.

    Raises:
        ValueError: no dimension, bounds of unequal length, or a low above its high.
        BudgetError: even the code of all lows is over budget.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    feasible: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None
    fill: bool = False

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise ValueError(
                "space: expected a low and a high for each of at least one dimension, "
                f"got {len(self.low)} lows and {len(self.high)} highs"
            )
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if low > high:
                raise ValueError(f"space: expected low <= high, got {low} > {high} in place {i}")
        if not self.fits(np.array([self.low], np.int64))[0]:
            lowest = " ".join(str(k) for k in self.low)
            raise BudgetError(
                f"budget: no code can meet it; the lowest, {lowest}, is still over budget. "
                "Allow more, or lower the smallest widths"
            )

    @property
    def dimensions(self) -> int:
        """Integers in a code, D."""
        return len(self.low)

    def fits(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``[K]``: which of ``codes [K, D]`` are within budget.

        Raises:
            ValueError: ``feasible`` gave anything but K booleans.
        """
        if self.feasible is None:
            return np.ones(len(codes), np.bool_)
        fits = self.feasible(codes)
        if fits.shape != (len(codes),) or fits.dtype != np.bool_:
            raise ValueError(
                f"feasible: expected [{len(codes)}] booleans, got {list(fits.shape)} {fits.dtype}"
            )
        return fits


@dataclass(frozen=True, slots=True)
class Candidate:
    """A code that a search asks about.

    Attributes:
        number: from 0, in the order asked.
        code: D integers of the space.
        phase: the part of the search that asks.
        rival: number of the candidate it has to beat to be of use; None where every outcome is.
    """

    number: int
    code: tuple[int, ...]
    phase: str
    rival: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "number": self.number,
            "code": list(self.code),
            "phase": self.phase,
            "rival": self.rival,
        }

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> Candidate:
        """What `to_dict` gave."""
        return Candidate(given["number"], tuple(given["code"]), given["phase"], given["rival"])


class SearchAlgorithm(Protocol):
    """Proposes candidates and is told their fitness; larger is better.

    The same seed and the same fitness give the same candidates, in whatever order it is told.
    """

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""

    @property
    def evaluations(self) -> int:
        """The most candidates it will ask for, in all."""

    @property
    def best(self) -> tuple[Candidate, float] | None:
        """The best candidate told so far and its fitness; of equals the lowest number."""

    def ask(self) -> list[Candidate]:
        """All candidates that can be evaluated now and were not yet told; empty once done.

        Asking again without telling gives the same.
        """

    def tell(self, number: int, fitness: float) -> None:
        """Says how good a candidate is; those asked at once may be told in any order.

        Raises:
            ValueError: ``number`` is not asked or was told before, or ``fitness`` is not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly, as plain JSON data, the generator included."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where ``state`` was taken; the seed it was built with no longer matters.

        Raises:
            CheckpointError: it is of another algorithm, space or options. Whether the space has
                the same budget cannot be seen from here.
        """


def draw(space: Space, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``[count, D]`` codes, uniform over the whole range, brought to the budget by `repair`."""
    return repair(space, uniform(space, count, generator), generator)


def uniform(space: Space, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``[count, D]`` codes, uniform over the whole range, within budget or not."""
    low, high = np.array(space.low, np.int64), np.array(space.high, np.int64)
    codes = generator.integers(low, high, size=(count, space.dimensions), endpoint=True)
    return np.asarray(codes, np.int64)


def repair(
    space: Space, codes: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """``codes [K, D]`` brought to the budget: the one rule for codes that are not at it.

    A code over budget is lowered: all steps from it down to the lows are put in random order and
    taken until it fits, so a dimension is lowered the likelier the further it is above its low.
    Where the space asks to `fill`, every code is then raised in the same way towards the highs,
    passing over steps that would not fit, until no single step does.
    """
    repaired = np.array(codes)
    for i in np.flatnonzero(~space.fits(codes)):
        repaired[i] = _lowered(space, codes[i], generator)
    if space.fill:
        for row in repaired:
            row[:] = _raised(space, row, generator)
    return repaired


def _lowered(
    space: Space, code: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    places = np.arange(space.dimensions)
    steps = generator.permutation(np.repeat(places, code - np.array(space.low, np.int64)))
    start, look = 0, _FIRST_LOOK
    # Many codes of the path in a call: most of a call's time does not depend on how many.
    while start < len(steps):
        taken = steps[start : start + look, None] == places
        path = code - np.cumsum(taken, axis=0)
        fits = space.fits(path)
        if fits.any():
            return np.asarray(path[fits.argmax()], np.int64)
        code, start, look = path[-1], start + look, 2 * look
    return code


def _raised(
    space: Space, code: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    places, one = np.arange(space.dimensions), np.eye(space.dimensions, dtype=np.int64)
    high = np.array(space.high, np.int64)
    steps = generator.permutation(np.repeat(places, high - code))
    while len(steps):
        path = code + np.cumsum(steps[:_FIRST_LOOK, None] == places, axis=0)
        fits = space.fits(path)
        taken = len(path) if fits.all() else int(fits.argmin())
        code, steps = path[taken - 1] if taken else code, steps[taken:]
        if taken < len(path):
            # A step that does not fit now never will: all others only use more.
            steps = steps[space.fits(np.minimum(code + one, high))[steps]]
    return code
