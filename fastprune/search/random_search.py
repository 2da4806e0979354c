"""Uniform random codes: what every other search algorithm has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastprune.errors import ConfigError
from fastprune.search._asked import Asked, check_settings, settings_of
from fastprune.search.base import Candidate, Space, draw

__all__ = ["RandomSearch"]


class RandomSearch:
    """Uniform codes, brought to the budget by `repair`; the phase is ``random``.

    Args:
        space: where to search.
        seed: of the PCG64 generator that all randomness comes from.
        evaluations: candidates in all, at least 1.
        batch: candidates asked at once; None for all.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(
        self, space: Space, seed: int, *, evaluations: int, batch: int | None = None
    ) -> None:
        options = {"evaluations": evaluations, "batch": evaluations if batch is None else batch}
        problems = [
            f"{name}: expected at least 1, got {value}"
            for name, value in options.items()
            if value < 1
        ]
        if problems:
            raise ConfigError(problems)
        self._settings = settings_of("random_search", space, **options)
        self._space = space
        self._evaluations = evaluations
        self._batch = options["batch"]
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._asked = Asked()
        self._go_on()

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""
        return not self._asked.waiting()

    @property
    def evaluations(self) -> int:
        """Candidates in all."""
        return self._evaluations

    @property
    def best(self) -> tuple[Candidate, float] | None:
        """The best candidate told so far and its fitness; of equals the lowest number."""
        return self._asked.best

    def ask(self) -> list[Candidate]:
        """The candidates of the batch that are not told."""
        return self._asked.waiting()

    def tell(self, number: int, fitness: float) -> None:
        """Says how good a candidate is, in any order within a batch.

        Raises:
            ValueError: ``number`` is not asked or was told before, or ``fitness`` is not finite.
        """
        if self._asked.tell(number, fitness):
            self._go_on()

    def state_dict(self) -> dict[str, Any]:
        """Candidates that are out, best and generator, as plain JSON data."""
        return {
            "settings": dict(self._settings),
            "generator": self._generator.bit_generator.state,
            "asked": self._asked.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where ``state`` was taken.

        Raises:
            CheckpointError: it is of another algorithm, space or options.
        """
        check_settings(state, self._settings)
        self._generator.bit_generator.state = state["generator"]
        self._asked.load_state_dict(state["asked"])

    def _go_on(self) -> None:
        count = min(self._batch, self._evaluations - self._asked.count)
        if count:
            codes = draw(self._space, count, self._generator)
            self._asked.add(codes, "random", [None] * count)
