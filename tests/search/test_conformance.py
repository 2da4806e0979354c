"""Every search algorithm holds to the conformance suite, and the suite finds what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fastprune.search import BeeColony, Evolution, RandomSearch, SearchAlgorithm, Space
from fastprune.search.base import Candidate

# Another Python reads this file for the makers: the suite is imported where it is used, since
# fastprune.testing loads torch.


# Cycles enough for the planted optimum of 16 dimensions, and few where only rules are looked at.
def batched(space: Space, seed: int) -> SearchAlgorithm:
    return BeeColony(space, seed, max_cycle=3 * space.dimensions)


def published(space: Space, seed: int) -> SearchAlgorithm:
    return BeeColony(space, seed, max_cycle=3 * space.dimensions, order="published")


def at_random(space: Space, seed: int) -> SearchAlgorithm:
    return RandomSearch(space, seed, evaluations=60)


def at_random_by_seven(space: Space, seed: int) -> SearchAlgorithm:
    return RandomSearch(space, seed, evaluations=60, batch=7)


def bred(space: Space, seed: int) -> SearchAlgorithm:
    return Evolution(
        space, seed, population=20, select_num=5, mutation_num=8, crossover_num=8, iterations=12
    )


def bred_by_twos(space: Space, seed: int) -> SearchAlgorithm:
    together = [str(i // 2) for i in range(space.dimensions)]
    return Evolution(
        space,
        seed,
        population=20,
        select_num=5,
        mutation_num=8,
        crossover_num=8,
        iterations=12,
        together=together,
    )


@pytest.mark.parametrize(
    "make", [batched, published, bred, bred_by_twos, at_random, at_random_by_seven]
)
def test_search_algorithms_hold_to_the_suite(make: Any) -> None:
    from fastprune.testing.search import check_search

    check_search(make)


class Wrong(RandomSearch):
    """A random search with one fault."""

    fault = ""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed, evaluations=30, batch=5)

    def ask(self) -> list[Candidate]:
        out = super().ask()
        if self.fault == "bounds":
            return [Candidate(c.number, (99, *c.code[1:]), c.phase, c.rival) for c in out]
        if self.fault == "again":
            return list(np.random.default_rng().permutation(np.array(out, object)))
        return out

    def tell(self, number: int, fitness: float) -> None:
        super().tell(number, fitness)
        if self.fault == "order" and self.ask():
            self._generator.random(self.ask()[0].number + 1)

    @property
    def best(self) -> tuple[Candidate, float] | None:
        best = super().best
        return best and (best[0], best[1] + (self.fault == "best"))

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.fault == "json":
            state["again"] = (1, 2)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self._generator.bit_generator.state
        super().load_state_dict(state)
        if self.fault == "generator":
            self._generator.bit_generator.state = own


class OutOfBounds(Wrong):
    fault = "bounds"


class NeverTheSame(Wrong):
    fault = "again"


class OrderMatters(Wrong):
    fault = "order"


class WrongBest(Wrong):
    fault = "best"


class NotPlain(Wrong):
    fault = "json"


class Forgetful(Wrong):
    fault = "generator"


class Hashed(RandomSearch):
    """Takes its seed from a hash, which is another one in every Python."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, abs(hash("seed")), evaluations=5)


class NoBetter(BeeColony):
    """Too few evaluations to come near the planted optimum."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed, max_cycle=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (OutOfBounds, "out of bounds"),
        (NeverTheSame, "asking again"),
        (OrderMatters, "changes what is asked"),
        (WrongBest, "best: expected"),
        (NotPlain, "not plain"),
        (Forgetful, "once loaded"),
        (Hashed, "another process asks"),
        (NoBetter, "optimum"),
    ],
)
def test_a_fault_is_found(make: Any, message: str) -> None:
    from fastprune.testing.search import check_search

    with pytest.raises(AssertionError, match=message):
        check_search(make)


def test_a_maker_that_another_python_cannot_find_is_refused() -> None:
    from fastprune.testing.search import check_search

    with pytest.raises(ValueError, match="top of a file"):
        check_search(lambda space, seed: RandomSearch(space, seed, evaluations=5))
