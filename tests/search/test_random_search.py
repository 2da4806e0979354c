"""Random search: how many, how many at once, and what it draws."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastprune.errors import CheckpointError, ConfigError
from fastprune.search import BeeColony, RandomSearch, Space

SPACE = Space((1, 1, 1), (10, 10, 4))


def steps(search: RandomSearch) -> list[int]:
    """How many candidates each step asks for."""
    sizes = []
    while out := search.ask():
        sizes.append(len(out))
        for candidate in out:
            assert (candidate.phase, candidate.rival) == ("random", None)
            search.tell(candidate.number, float(sum(candidate.code)))
    return sizes


def test_all_are_asked_at_once_or_a_batch_at_a_time() -> None:
    assert steps(RandomSearch(SPACE, 0, evaluations=8)) == [8]
    assert steps(RandomSearch(SPACE, 0, evaluations=8, batch=3)) == [3, 3, 2]


def test_the_next_batch_waits_for_the_last_of_this_one() -> None:
    search = RandomSearch(SPACE, 0, evaluations=4, batch=2)
    search.tell(1, 0.5)

    assert [candidate.number for candidate in search.ask()] == [0]

    search.tell(0, 0.5)

    assert [candidate.number for candidate in search.ask()] == [2, 3]
    assert search.best is not None
    assert search.best[0].number == 0


def test_both_bounds_of_every_dimension_are_drawn() -> None:
    codes = np.array([c.code for c in RandomSearch(SPACE, 0, evaluations=300).ask()])

    assert tuple(codes.min(0)) == SPACE.low
    assert tuple(codes.max(0)) == SPACE.high


def test_numbers_below_one_are_refused_together() -> None:
    with pytest.raises(ConfigError) as error:
        RandomSearch(SPACE, 0, evaluations=0, batch=-1)

    assert error.value.problems == (
        "evaluations: expected at least 1, got 0",
        "batch: expected at least 1, got -1",
    )


def test_a_state_of_something_else_is_refused() -> None:
    state = json.loads(json.dumps(RandomSearch(SPACE, 0, evaluations=5).state_dict()))

    with pytest.raises(CheckpointError, match="evaluations was 5, is now 6"):
        RandomSearch(SPACE, 0, evaluations=6).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"high was \[10, 10, 4\], is now \[10, 10, 10\]"):
        RandomSearch(Space((1,) * 3, (10,) * 3), 0, evaluations=5).load_state_dict(state)
    with pytest.raises(CheckpointError, match="algorithm was 'random_search'"):
        BeeColony(SPACE, 0).load_state_dict(state)
