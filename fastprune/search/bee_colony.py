"""Artificial bee colony over integer codes (Lin et al., Channel Pruning via Automatic Structure
Search, IJCAI 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import ConfigError
from fastprune.search._asked import Asked, check_settings, settings_of
from fastprune.search.base import Candidate, Space, draw, repair

__all__ = ["BeeColony", "Order", "Phase", "Source", "neighbours", "probabilities"]

Order = Literal["batched", "published"]
Phase = Literal["initial", "employed", "onlooker", "scout"]

_NEXT: dict[Phase, Phase] = {
    "initial": "employed",
    "employed": "onlooker",
    "onlooker": "scout",
    "scout": "employed",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A food source.

    Attributes:
        candidate: who sits there.
        fitness: its fitness.
        trail: neighbours in a row that were no better.
    """

    candidate: Candidate
    fitness: float
    trail: int


class BeeColony:
    """``food_number`` sources; in each cycle employed bees, onlookers and at most one scout.

    * initial: every source is drawn uniformly from the whole range.
    * employed: a neighbour of every source. A better one takes the source's place and its trail
      begins at 0; any other lengthens the trail by 1.
    * onlooker: the same on ``food_number`` sources chosen by `probabilities`, going round from
      the first source; one may be chosen more than once.
    * scout: the source with the longest trail (the first of equals), if that is at least
      ``food_limit``, is drawn afresh and taken whatever its fitness.

    ``batched`` asks for a whole phase at once: neighbours are of the population as the phase
    began, and outcomes are applied by number when the phase is told. ``published`` asks for one
    candidate at a time, of the population as the step before left it; the choice of onlookers
    rests on the fitness at the beginning of their phase in both.

    A neighbour can equal its source, where the change rounds to nothing or was repaired away. It
    is asked all the same and lengthens the trail, as published: who remembers outcomes by
    structure answers for nothing, and a source whose neighbours are itself is one to leave.

    Args:
        space: where to search.
        seed: of the PCG64 generator that all randomness comes from.
        food_number: sources, at least 2: a neighbour needs another one.
        max_cycle: cycles, at least 1.
        food_limit: trail from which a source is given up, at least 1.
        honeychange_num: distinct dimensions that a neighbour changes, 1 to D.
        order: see above.

    Raises:
        ConfigError: options out of range, all of them at once.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        food_number: int = 10,
        max_cycle: int = 10,
        food_limit: int = 5,
        honeychange_num: int = 2,
        order: Order = "batched",
    ) -> None:
        options = {
            "food_number": food_number,
            "max_cycle": max_cycle,
            "food_limit": food_limit,
            "honeychange_num": honeychange_num,
            "order": order,
        }
        _check(options, space.dimensions)
        self._settings = settings_of("bee_colony", space, **options)
        self._space = space
        self._food_number = food_number
        self._max_cycle = max_cycle
        self._food_limit = food_limit
        self._honeychange_num = honeychange_num
        self._at_once = food_number if order == "batched" else 1
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._asked = Asked()
        self._sources: list[Source] = []
        self._phase: Phase = "initial"
        self._cycle = 0
        # Sources whose turn in this phase is to come, and those of the candidates that are out.
        self._turns = list(range(food_number))
        self._out: list[int] = []
        self._go_on()

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""
        return not self._out

    @property
    def evaluations(self) -> int:
        """The most candidates it will ask for: a scout in every cycle."""
        return self._food_number + self._max_cycle * (2 * self._food_number + 1)

    @property
    def best(self) -> tuple[Candidate, float] | None:
        """The best candidate told so far, given up or not; of equals the lowest number."""
        return self._asked.best

    @property
    def sources(self) -> tuple[Source, ...]:
        """The population; sources of the initial phase are there once they are applied."""
        return tuple(self._sources)

    def ask(self) -> list[Candidate]:
        """The candidates of the phase (``published``: the one candidate) that are not told."""
        return self._asked.waiting()

    def tell(self, number: int, fitness: float) -> None:
        """Says how good a candidate is, in any order within a phase.

        Raises:
            ValueError: ``number`` is not asked or was told before, or ``fitness`` is not finite.
        """
        step = self._asked.tell(number, fitness)
        if step:
            for source, (candidate, value) in zip(self._out, step, strict=True):
                self._apply(source, candidate, value)
            self._go_on()

    def state_dict(self) -> dict[str, Any]:
        """Population, trails, candidates that are out, best and generator, as plain JSON data."""
        return {
            "settings": dict(self._settings),
            "generator": self._generator.bit_generator.state,
            "asked": self._asked.state_dict(),
            "sources": [[s.candidate.to_dict(), s.fitness, s.trail] for s in self._sources],
            "phase": self._phase,
            "cycle": self._cycle,
            "turns": list(self._turns),
            "out": list(self._out),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where ``state`` was taken.

        Raises:
            CheckpointError: it is of another algorithm, space or options.
        """
        check_settings(state, self._settings)
        self._generator.bit_generator.state = state["generator"]
        self._asked.load_state_dict(state["asked"])
        self._sources = [Source(Candidate.from_dict(c), f, t) for c, f, t in state["sources"]]
        self._phase = state["phase"]
        self._cycle = state["cycle"]
        self._turns = list(state["turns"])
        self._out = list(state["out"])

    def _apply(self, at: int, candidate: Candidate, fitness: float) -> None:
        if self._phase == "initial":
            self._sources.append(Source(candidate, fitness, 0))
        elif self._phase == "scout" or fitness > self._sources[at].fitness:
            self._sources[at] = Source(candidate, fitness, 0)
        else:
            self._sources[at] = replace(self._sources[at], trail=self._sources[at].trail + 1)

    def _go_on(self) -> None:
        """Asks for what comes next; for nothing after the last cycle."""
        while not self._turns:
            if self._phase == "scout" and self._cycle == self._max_cycle:
                self._out = []
                return
            self._phase = _NEXT[self._phase]
            self._cycle += self._phase == "employed"
            self._turns = self._turns_of_phase()
        self._out, self._turns = self._turns[: self._at_once], self._turns[self._at_once :]
        rivals: list[int | None]
        if self._phase in ("initial", "scout"):
            codes = draw(self._space, len(self._out), self._generator)
            rivals = [None] * len(self._out)
        else:
            population = np.array([s.candidate.code for s in self._sources], np.int64)
            codes = neighbours(
                self._space, population, self._out, self._honeychange_num, self._generator
            )
            rivals = [self._sources[i].candidate.number for i in self._out]
        self._asked.add(codes, self._phase, rivals)

    def _turns_of_phase(self) -> list[int]:
        if self._phase == "employed":
            return list(range(self._food_number))
        if self._phase == "onlooker":
            chance = probabilities(np.array([s.fitness for s in self._sources]))
            turns: list[int] = []
            while len(turns) < self._food_number:
                chosen = self._generator.random(self._food_number) < chance
                turns.extend(np.flatnonzero(chosen).tolist())
            return turns[: self._food_number]
        trails = [s.trail for s in self._sources]
        longest = max(trails)
        return [trails.index(longest)] if longest >= self._food_limit else []


def probabilities(fitness: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[F]``: how likely an onlooker stays at each source, ``0.9 * fitness / max + 0.1``.

    Where fitness is negative somewhere, all of it is lifted until the worst is 0; where every
    source is at 0 then, each is the best and has 1. So all are in [0.1, 1], and going round ends.
    """
    lifted = fitness - min(fitness.min(), 0.0)
    best = lifted.max()
    if best == 0:
        return np.ones(len(fitness))
    return np.asarray(0.9 * (lifted / best) + 0.1, np.float64)


def neighbours(
    space: Space,
    population: NDArray[np.int64],
    at: Sequence[int],
    changes: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """``[K, D]``: a code beside each of the sources ``at``, brought to the budget by `repair`.

    With another source k, in ``changes`` distinct dimensions d, each with an r of its own uniform
    in [-1, 1): ``int(x_id + r * (x_id - x_kd))``, towards zero, held to the bounds.

    Args:
        space: bounds and budget.
        population: ``[F, D]``, F at least 2.
        at: K rows of it.
        changes: 1 to D.
        generator: where the random numbers come from.
    """
    count, dimensions = len(at), space.dimensions
    own = np.array(at, np.int64)
    other = generator.integers(len(population) - 1, size=count)
    other += other >= own
    places = np.argsort(generator.random((count, dimensions)), axis=1)[:, :changes]
    r = generator.uniform(-1, 1, (count, changes))
    x, x_k = population[own[:, None], places], population[other[:, None], places]
    moved = np.trunc(x + r * (x - x_k)).astype(np.int64)
    low, high = np.array(space.low, np.int64), np.array(space.high, np.int64)
    codes = population[own]
    codes[np.arange(count)[:, None], places] = np.clip(moved, low[places], high[places])
    return repair(space, codes, generator)


def _check(options: Mapping[str, Any], dimensions: int) -> None:
    problems = [
        f"{name}: expected at least {least}, got {options[name]}"
        for name, least in {"food_number": 2, "max_cycle": 1, "food_limit": 1}.items()
        if options[name] < least
    ]
    if not 1 <= options["honeychange_num"] <= dimensions:
        problems.append(
            f"honeychange_num: expected 1 to {dimensions}, the length of a code, "
            f"got {options['honeychange_num']}"
        )
    if options["order"] not in get_args(Order):
        known = " or ".join(repr(name) for name in get_args(Order))
        problems.append(f"order: expected {known}, got {options['order']!r}")
    if problems:
        raise ConfigError(problems)
