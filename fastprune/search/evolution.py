"""Evolution over integer codes (Liu et al., MetaPruning, ICCV 2019)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import ConfigError
from fastprune.search._asked import Asked, check_settings, settings_of
from fastprune.search.base import Candidate, Space, repair, uniform

__all__ = ["Evolution", "Phase", "crossings", "mutations", "unseen"]

Phase = Literal["initial", "mutation", "crossover", "random"]
Code = tuple[int, ...]

# Looks for codes that fit and are new, each of twice as many as the one before: 31 draws for every
# code wanted, so where one in thirty fits, most codes are as drawn. One more look is repaired.
_LOOKS = 5


class Evolution:
    """Populations one after another, each bred from the best of all before it.

    * initial: ``population`` codes drawn uniformly from the whole range.
    * mutation: one of the parents, the ``select_num`` best of all that was told, every dimension
      moved with ``mutation_probability``, see `mutations`.
    * crossover: two different parents, every dimension from either of them.
    * random: drawn as the initial ones, up to ``population``; also in place of mutations or
      crossovers that could not be found.

    The three are asked at once, and each code only once in the whole search. What is over budget
    or was asked before is drawn again, up to 31 times a code; then what is over budget is repaired
    (`base.repair`). So random codes are uniform over those within budget as long as one draw in
    thirty or so fits; under a tighter budget most lie close below it. In a space that asks to
    `fill` all are raised until no step fits. Where none of this gives a random code, `unseen`
    finds those that are left; there being none, the search ends early.

    Args:
        space: where to search.
        seed: of the PCG64 generator that all randomness comes from.
        population: candidates asked at once, at least 1.
        select_num: parents, 1 to ``population``; at least 2 where there are crossovers.
        mutation_num: mutations in each population but the first.
        crossover_num: crossovers in each population but the first; with the mutations no more than
            ``population``.
        iterations: populations, the initial one counted, at least 1.
        mutation_probability: above 0, at most 1.
        together: a label for each dimension; dimensions of equal labels mutate and cross together
            (all of them, each by its own amount, or none). None: each by itself.

    Raises:
        ConfigError: options out of range, all of them at once.
        ValueError: ``together`` has not one label a dimension.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        population: int = 100,
        select_num: int = 30,
        mutation_num: int = 30,
        crossover_num: int = 30,
        iterations: int = 20,
        mutation_probability: float = 0.1,
        together: Sequence[str] | None = None,
    ) -> None:
        options = {
            "population": population,
            "select_num": select_num,
            "mutation_num": mutation_num,
            "crossover_num": crossover_num,
            "iterations": iterations,
            "mutation_probability": mutation_probability,
            "together": None if together is None else list(together),
        }
        _check(options)
        self._settings = settings_of("evolution", space, **options)
        self._space = space
        self._population = population
        self._select_num = select_num
        self._mutation_num = mutation_num
        self._crossover_num = crossover_num
        self._iterations = iterations
        self._probability = mutation_probability
        self._parts = _parts(space.dimensions, together)
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._asked = Asked()
        self._iteration = 0
        self._history: list[tuple[Candidate, float]] = []
        self._go_on()

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""
        return not self._asked.waiting()

    @property
    def evaluations(self) -> int:
        """The most candidates it will ask for: fewer only where the space has no more codes."""
        return self._population * self._iterations

    @property
    def best(self) -> tuple[Candidate, float] | None:
        """The best candidate told so far and its fitness; of equals the lowest number."""
        return self._asked.best

    @property
    def history(self) -> tuple[tuple[Candidate, float], ...]:
        """Every candidate and its fitness by number; those of a population once all are told."""
        return tuple(self._history)

    @property
    def parents(self) -> tuple[tuple[Candidate, float], ...]:
        """The best of the history, best first; of equals the lowest number first."""
        return tuple(
            heapq.nsmallest(
                self._select_num, self._history, key=lambda told: (-told[1], told[0].number)
            )
        )

    def ask(self) -> list[Candidate]:
        """The candidates of the population that are not told."""
        return self._asked.waiting()

    def tell(self, number: int, fitness: float) -> None:
        """Says how good a candidate is, in any order within a population.

        Raises:
            ValueError: ``number`` is not asked or was told before, or ``fitness`` is not finite.
        """
        told = self._asked.tell(number, fitness)
        if told:
            self._history += told
            self._go_on()

    def state_dict(self) -> dict[str, Any]:
        """History, candidates that are out, best and generator, as plain JSON data."""
        return {
            "settings": {**self._settings},
            "generator": self._generator.bit_generator.state,
            "asked": self._asked.state_dict(),
            "history": [[candidate.to_dict(), fitness] for candidate, fitness in self._history],
            "iteration": self._iteration,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where ``state`` was taken.

        Raises:
            CheckpointError: it is of another algorithm, space or options.
        """
        check_settings(state, self._settings)
        self._generator.bit_generator.state = state["generator"]
        self._asked.load_state_dict(state["asked"])
        self._history = [(Candidate.from_dict(c), fitness) for c, fitness in state["history"]]
        self._iteration = state["iteration"]

    def _go_on(self) -> None:
        """Asks for the next population; for nothing after the last."""
        if self._iteration == self._iterations:
            return
        self._iteration += 1
        left = self._population
        # All that was asked: a population is bred once everything before it is told.
        seen = {candidate.code for candidate, _ in self._history}
        if self._history:
            parents = np.array([c.code for c, _ in self.parents], np.int64)
            left -= self._add("mutation", self._mutation_num, self._mutated(parents), seen)
            # Where crossovers are wanted, one parent alone means that no other code fits.
            if len(parents) > 1:
                left -= self._add("crossover", self._crossover_num, self._crossed(parents), seen)
        self._add("random" if self._history else "initial", left, self._drawn, seen)

    def _mutated(self, parents: NDArray[np.int64]) -> Callable[[int], NDArray[np.int64]]:
        return lambda count: mutations(
            self._space, parents, count, self._probability, self._parts, self._generator
        )

    def _crossed(self, parents: NDArray[np.int64]) -> Callable[[int], NDArray[np.int64]]:
        return lambda count: crossings(parents, count, self._parts, self._generator)

    def _drawn(self, count: int) -> NDArray[np.int64]:
        return uniform(self._space, count, self._generator)

    def _add(
        self,
        phase: Phase,
        count: int,
        propose: Callable[[int], NDArray[np.int64]],
        seen: set[Code],
    ) -> int:
        """Asks for up to ``count`` codes within budget that are not ``seen``, and puts them there;
        how many there are.
        """
        found: list[Code] = []

        def keep(codes: NDArray[np.int64]) -> None:
            for code in map(tuple, codes.tolist()):
                if len(found) < count and code not in seen:
                    seen.add(code)
                    found.append(code)

        for look in range(_LOOKS):
            if len(found) < count:
                codes = propose(count << look)
                codes = codes[self._space.fits(codes)]
                if self._space.fill:
                    # Each takes a while, and some of them become equal.
                    codes = repair(self._space, codes[: 2 * (count - len(found))], self._generator)
                keep(codes)
        if len(found) < count:
            keep(repair(self._space, propose(count - len(found)), self._generator))
        if len(found) < count and phase in ("initial", "random"):
            keep(unseen(self._space, seen, count - len(found), self._generator))
        codes = np.array(found, np.int64).reshape(-1, self._space.dimensions)
        self._asked.add(codes, phase, [None] * len(found))
        return len(found)


def mutations(
    space: Space,
    parents: NDArray[np.int64],
    count: int,
    probability: float,
    parts: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """``[count, D]``: parents chosen uniformly, each of whose parts moves with ``probability``.

    A dimension of n values moves to any other of them, all equally likely: by 1 to n - 1, going
    on at its low past its high. Budget is not looked at, and some come out as their parents.

    Args:
        space: bounds.
        parents: ``[P, D]``.
        count: how many.
        probability: of a part.
        parts: ``[D]``, from 0: dimensions of equal number move together.
        generator: where the random numbers come from.
    """
    own = parents[generator.integers(len(parents), size=count)]
    low, high = np.array(space.low, np.int64), np.array(space.high, np.int64)
    values = high - low + 1
    moves = generator.random((count, parts.max() + 1)) < probability
    # A dimension of one value moves by 1 of 1: not at all.
    by = generator.integers(1, np.maximum(values, 2), size=own.shape)
    return np.where(moves[:, parts], low + (own - low + by) % values, own)


def crossings(
    parents: NDArray[np.int64],
    count: int,
    parts: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """``[count, D]``: each part from either of two parents, who are never the same one.

    Budget is not looked at, and a child may equal a parent.

    Args:
        parents: ``[P, D]``, P at least 2.
        count: how many.
        parts: ``[D]``, from 0: dimensions of equal number come from the same parent.
        generator: where the random numbers come from.
    """
    one = generator.integers(len(parents), size=count)
    other = generator.integers(len(parents) - 1, size=count)
    other += other >= one
    from_one = generator.random((count, parts.max() + 1)) < 0.5
    return np.where(from_one[:, parts], parents[one], parents[other])


def unseen(
    space: Space, seen: set[Code], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """``[K, D]``: codes within budget that are not ``seen``; fewer than ``count`` only where there
    are no more.

    From the lows upwards, a level being the codes of equal sum: a code within budget is reached
    through codes within budget. Those of a level come in random order.
    """
    found: list[Code] = []
    high = np.array(space.high, np.int64)
    step = np.eye(space.dimensions, dtype=np.int64)
    level = np.array([space.low], np.int64)
    while True:
        found += [c for c in map(tuple, generator.permutation(level).tolist()) if c not in seen]
        above = (level[:, None] + step).reshape(-1, space.dimensions)
        above = above[(above <= high).all(1)]
        if len(found) >= count or not len(above):
            break
        above = np.unique(above, axis=0)
        level = above[space.fits(above)]
    return np.array(found[:count], np.int64).reshape(-1, space.dimensions)


def _parts(dimensions: int, together: Sequence[str] | None) -> NDArray[np.int64]:
    """``[D]``: a number for each label, in the order of their first dimensions."""
    if together is None:
        return np.arange(dimensions)
    if len(together) != dimensions:
        raise ValueError(
            f"together: expected {dimensions} labels, one a dimension, got {len(together)}"
        )
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in together], np.int64)


def _check(options: Mapping[str, Any]) -> None:
    population, bred = options["population"], options["mutation_num"] + options["crossover_num"]
    problems = [
        f"{name}: expected at least {least}, got {options[name]}"
        for name, least in {
            "population": 1,
            "mutation_num": 0,
            "crossover_num": 0,
            "iterations": 1,
        }.items()
        if options[name] < least
    ]
    least = 2 if options["crossover_num"] > 0 else 1
    if not least <= options["select_num"] <= population:
        problems.append(
            f"select_num: expected {least} to {population}, the population, "
            f"got {options['select_num']}"
        )
    if bred > population:
        problems.append(
            f"mutation_num, crossover_num: expected at most {population} together, the "
            f"population, got {bred}"
        )
    if not 0 < options["mutation_probability"] <= 1:
        problems.append(
            "mutation_probability: expected above 0 and at most 1, got "
            f"{options['mutation_probability']}"
        )
    if problems:
        raise ConfigError(problems)
