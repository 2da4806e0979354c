"""What every search algorithm keeps: candidates that are out, what was told, the best of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import CheckpointError
from fastprune.search.base import Candidate, Space

__all__ = ["Asked", "check_settings", "settings_of"]


class Asked:
    """The candidates of the step in progress; a step is over when all of it is told.

    So nothing can depend on the order of telling.
    """

    def __init__(self) -> None:
        self.count = 0
        self.best: tuple[Candidate, float] | None = None
        self._waiting: dict[int, Candidate] = {}
        self._told: list[tuple[Candidate, float]] = []

    def add(self, codes: NDArray[np.int64], phase: str, rivals: Sequence[int | None]) -> None:
        """Begins a step of candidates with ``codes [K, D]``, numbered on from the last."""
        for code, rival in zip(codes.tolist(), rivals, strict=True):
            self._waiting[self.count] = Candidate(self.count, tuple(code), phase, rival)
            self.count += 1

    def waiting(self) -> list[Candidate]:
        """Those of the step that are not told, by number."""
        return list(self._waiting.values())

    def tell(self, number: int, fitness: float) -> list[tuple[Candidate, float]]:
        """Notes a fitness; the whole step by number once the last of it is told, else nothing.

        Raises:
            ValueError: the number is not waited for, or the fitness is not finite.
        """
        if number not in self._waiting:
            known = 0 <= number < self.count
            raise ValueError(
                f"tell: candidate {number} was {'told before' if known else 'never asked'}"
            )
        fitness = float(fitness)
        if not math.isfinite(fitness):
            raise ValueError(f"tell: expected a finite fitness of {number}, got {fitness}")
        candidate = self._waiting.pop(number)
        if self.best is None or (fitness, -number) > (self.best[1], -self.best[0].number):
            self.best = (candidate, fitness)
        self._told.append((candidate, fitness))
        if self._waiting:
            return []
        step = sorted(self._told, key=lambda told: told[0].number)
        self._told = []
        return step

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "count": self.count,
            "best": None if self.best is None else [self.best[0].to_dict(), self.best[1]],
            "waiting": [candidate.to_dict() for candidate in self.waiting()],
            "told": [[candidate.to_dict(), fitness] for candidate, fitness in self._told],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        best = state["best"]
        self.count = state["count"]
        self.best = None if best is None else (Candidate.from_dict(best[0]), best[1])
        self._waiting = {c["number"]: Candidate.from_dict(c) for c in state["waiting"]}
        self._told = [(Candidate.from_dict(c), fitness) for c, fitness in state["told"]]


def settings_of(algorithm: str, space: Space, **options: Any) -> dict[str, Any]:
    """What a state has to agree on with the search that loads it, as plain JSON data."""
    return {"algorithm": algorithm, "low": list(space.low), "high": list(space.high), **options}


def check_settings(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming the first that differs, unless ``state`` has ``expected``."""
    for name, value in expected.items():
        if state["settings"].get(name) != value:
            raise CheckpointError(
                f"search state: {name} was {state['settings'].get(name)!r}, is now {value!r}; "
                "put it back, or begin a new search"
            )
