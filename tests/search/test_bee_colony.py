"""The bee colony against phases, trails and neighbours worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fastprune.errors import CheckpointError, ConfigError
from fastprune.search import BeeColony, Candidate, Space
from fastprune.search.bee_colony import Order, neighbours, probabilities

SPACE = Space((1,) * 5, (10,) * 5)


def tell(search: BeeColony, fitness: list[float]) -> list[Candidate]:
    """Tells the fitness of all that is asked, in order; gives what was asked."""
    out = search.ask()
    for candidate, value in zip(out, fitness, strict=True):
        search.tell(candidate.number, value)
    return out


def trails(search: BeeColony) -> list[int]:
    return [source.trail for source in search.sources]


def holders(search: BeeColony) -> list[int]:
    return [source.candidate.number for source in search.sources]


def total(search: BeeColony, fitness: Any) -> list[Candidate]:
    """Runs to the end, with ``fitness`` of the candidate; gives all that was asked."""
    asked = []
    while out := search.ask():
        asked += out
        for candidate in out:
            search.tell(candidate.number, fitness(candidate))
    return asked


class Drawn:
    """A generator that gives what it was given."""

    def __init__(self, other: list[int], places: list[list[float]], r: list[list[float]]) -> None:
        self.other, self.places, self.r = other, places, r

    def integers(self, high: int, size: int) -> Any:
        return np.array(self.other)

    def random(self, size: tuple[int, int]) -> Any:
        return np.array(self.places)

    def uniform(self, low: int, high: int, size: tuple[int, int]) -> Any:
        assert (low, high) == (-1, 1)
        return np.array(self.r)


def test_a_neighbour_is_the_published_formula() -> None:
    population = np.array([[5, 5, 5, 5], [1, 9, 5, 2], [10, 1, 9, 9]])
    # Row 0: k is source 1, places 0 and 3. Row 1: k is 2 (1 skips itself), places 1 and 2.
    # Row 2: k is 1, places 2 and 0.
    generator: Any = Drawn(
        other=[0, 1, 1],
        places=[[0.1, 0.8, 0.9, 0.2], [0.9, 0.1, 0.2, 0.8], [0.2, 0.9, 0.1, 0.8]],
        r=[[0.5, -0.5], [1.0, -0.3], [-0.9, 0.7]],
    )

    codes = neighbours(Space((1,) * 4, (10,) * 4), population, [0, 1, 2], 2, generator)

    assert codes.tolist() == [
        [7, 5, 5, 3],  # 5 + 0.5 * 4 = 7; 5 - 0.5 * 3 = 3.5
        [1, 10, 6, 2],  # 9 + 8 = 17, held to 10; 5 - 0.3 * -4 = 6.2
        [10, 1, 5, 9],  # 10 + 0.7 * 9 = 16.3, held to 10; 9 - 0.9 * 4 = 5.4
    ]
    assert population.tolist() == [[5, 5, 5, 5], [1, 9, 5, 2], [10, 1, 9, 9]]


def test_every_dimension_changes_as_often_the_last_one_too() -> None:
    population = np.array([[5] * 6, [1] * 6, [10] * 6])
    space = Space((1,) * 6, (10,) * 6)

    codes = neighbours(space, population, [1] * 6000, 2, np.random.default_rng(0))

    changed = codes != 1
    assert changed.sum(1).max() == 2
    rates = changed.mean(0)
    assert np.ptp(rates) < 0.03
    assert rates.min() > 0.1


def test_probabilities_are_the_published_rule_and_never_below_a_tenth() -> None:
    assert probabilities(np.array([50.0, 100.0, 0.0])).tolist() == [0.55, 1.0, 0.1]
    assert probabilities(np.array([0.0, 0.0])).tolist() == [1.0, 1.0]
    assert probabilities(np.array([-4.0, -2.0, -3.0])).tolist() == [0.1, 1.0, 0.55]
    assert probabilities(np.array([-2.0, -2.0])).tolist() == [1.0, 1.0]
    assert probabilities(np.array([-1.0, 1.0])).tolist() == [0.1, 1.0]


def test_a_cycle_in_batches() -> None:
    search = BeeColony(SPACE, 1, food_number=3, max_cycle=2, food_limit=3)

    initial = tell(search, [0.5, 0.2, 0.3])

    assert [(c.number, c.phase, c.rival) for c in initial] == [
        (0, "initial", None),
        (1, "initial", None),
        (2, "initial", None),
    ]
    assert holders(search) == [0, 1, 2]
    assert trails(search) == [0, 0, 0]
    assert search.best == (initial[0], 0.5)

    # Source 1 gets better; an equal one (source 0) is no better.
    employed = tell(search, [0.5, 0.4, 0.1])

    assert [(c.number, c.phase, c.rival) for c in employed] == [
        (3, "employed", 0),
        (4, "employed", 1),
        (5, "employed", 2),
    ]
    for candidate, source in zip(employed, initial, strict=True):
        assert sum(a != b for a, b in zip(candidate.code, source.code, strict=True)) <= 2
    assert holders(search) == [0, 4, 2]
    assert trails(search) == [1, 0, 1]
    assert search.sources[1].fitness == 0.4

    before = trails(search)
    onlookers = tell(search, [0.0, 0.0, 0.0])

    assert [c.phase for c in onlookers] == ["onlooker"] * 3
    visits = [sum(c.rival == holder for c in onlookers) for holder in (0, 4, 2)]
    assert sum(visits) == 3
    assert trails(search) == [trail + more for trail, more in zip(before, visits, strict=True)]


def test_onlookers_in_a_batch_are_applied_one_after_another() -> None:
    # Both onlookers come to source 0 at this seed.
    search = BeeColony(SPACE, 1, food_number=2, max_cycle=1)
    tell(search, [1.0, 0.0])
    tell(search, [0.0, 0.0])
    onlookers = search.ask()
    assert [c.rival for c in onlookers] == [0, 0]

    search.tell(onlookers[1].number, 2.0)
    search.tell(onlookers[0].number, 3.0)

    # By number: 3 is better than 1 and takes the place, 2 is no better than 3.
    assert holders(search)[0] == onlookers[0].number
    assert trails(search)[0] == 1


def test_a_scout_draws_the_longest_trail_afresh_whatever_its_fitness() -> None:
    # Both onlookers come to source 0 at this seed.
    search = BeeColony(SPACE, 1, food_number=2, max_cycle=2, food_limit=3)
    initial = tell(search, [1.0, 0.0])
    tell(search, [0.0, 0.0])
    tell(search, [0.0, 0.0])
    assert trails(search) == [3, 1]

    scouts = tell(search, [-7.0])

    assert [(c.phase, c.rival) for c in scouts] == [("scout", None)]
    assert holders(search) == [scouts[0].number, 1]
    assert trails(search) == [0, 1]
    assert search.sources[0].fitness == -7.0
    # The best is remembered though its source is gone.
    assert search.best == (initial[0], 1.0)
    assert search.ask()[0].phase == "employed"


def test_no_scout_flies_below_the_limit() -> None:
    search = BeeColony(SPACE, 1, food_number=2, max_cycle=2, food_limit=4)
    tell(search, [1.0, 0.0])
    tell(search, [0.0, 0.0])
    tell(search, [0.0, 0.0])

    assert trails(search) == [3, 1]
    assert search.ask()[0].phase == "employed"


@pytest.mark.parametrize("order", ["batched", "published"])
def test_the_number_of_evaluations(order: Order) -> None:
    def colony() -> BeeColony:
        return BeeColony(SPACE, 0, food_number=4, max_cycle=3, food_limit=1, order=order)

    assert colony().evaluations == 4 + 3 * 9
    # Nothing is ever better: a scout in every cycle. Everything is: none.
    assert len(total(colony(), lambda c: 0.0)) == 4 + 3 * 9
    assert len(total(colony(), lambda c: float(c.number))) == 4 + 3 * 8


def test_published_asks_one_at_a_time_and_each_step_sees_the_one_before() -> None:
    search = BeeColony(SPACE, 0, food_number=3, max_cycle=4, order="published")
    asked, at = [], []
    while out := search.ask():
        assert len(out) == 1
        asked += out
        before = holders(search)
        if out[0].rival is not None:
            assert out[0].rival in before
            at.append(before.index(out[0].rival))
        search.tell(out[0].number, float(out[0].number))
        assert search.sources[-1 if out[0].rival is None else at[-1]].candidate == out[0]

    assert [c.phase for c in asked[:9]] == ["initial"] * 3 + ["employed"] * 3 + ["onlooker"] * 3
    # The rival is the latest at the source, also where onlookers of one phase meet.
    for cycle in range(4):
        onlookers = asked[3 + 6 * cycle + 3 : 3 + 6 * cycle + 6]
        assert len({c.rival for c in onlookers}) == 3


def test_batched_neighbours_are_of_the_population_as_the_phase_began() -> None:
    search = BeeColony(SPACE, 0, food_number=3, max_cycle=4)
    tell(search, [0.0, 1.0, 2.0])
    while out := search.ask():
        assert {c.rival for c in out} <= set(holders(search))
        tell(search, [float(c.number) for c in out])


def test_published_steps_use_neighbours_that_were_just_taken() -> None:
    # In one dimension with two sources, source 1 moves by at most its distance to source 0, which
    # has just moved: at some seed further than the old distance allows.
    space = Space((1,), (1000,))
    far = 0
    for seed in range(40):
        search = BeeColony(
            space, seed, food_number=2, max_cycle=1, honeychange_num=1, order="published"
        )
        first, second = (tell(search, [0.0])[0].code[0] for _ in range(2))
        moved = tell(search, [1.0])[0].code[0]
        now = search.ask()[0].code[0]
        assert abs(now - second) <= abs(second - moved) + 1
        far += abs(now - second) > abs(second - first) + 1
    assert far


def test_a_neighbour_that_equals_its_source_is_asked_and_lengthens_the_trail() -> None:
    search = BeeColony(Space((4, 4), (4, 4)), 0, food_number=2, max_cycle=1)
    tell(search, [1.0, 1.0])

    employed = tell(search, [1.0, 1.0])

    assert [c.code for c in employed] == [(4, 4), (4, 4)]
    assert trails(search) == [1, 1]


@pytest.mark.parametrize("order", ["batched", "published"])
def test_every_phase_reaches_both_bounds_of_every_dimension(order: Order) -> None:
    space = Space((1, 0, 3), (4, 2, 6))
    search = BeeColony(space, 0, food_number=5, max_cycle=40, food_limit=1, order=order)

    asked = total(search, lambda c: 0.0)

    for phase in ("employed", "onlooker", "scout"):
        codes = np.array([c.code for c in asked if c.phase == phase])
        assert tuple(codes.min(0)) == space.low
        assert tuple(codes.max(0)) == space.high


def test_nothing_over_budget_is_asked() -> None:
    space = Space((1,) * 8, (10,) * 8, lambda codes: codes.sum(1) <= 30)
    search = BeeColony(space, 0, max_cycle=20)

    asked = total(search, lambda c: float(sum(c.code)))

    sums = [sum(c.code) for c in asked]
    assert max(sums) == 30
    assert search.best is not None
    assert search.best[1] == 30


def test_all_options_out_of_range_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        BeeColony(
            SPACE,
            0,
            food_number=1,
            max_cycle=0,
            food_limit=0,
            honeychange_num=6,
            order="both",  # type: ignore[arg-type]
        )

    assert error.value.problems == (
        "food_number: expected at least 2, got 1",
        "max_cycle: expected at least 1, got 0",
        "food_limit: expected at least 1, got 0",
        "honeychange_num: expected 1 to 5, the length of a code, got 6",
        "order: expected 'batched' or 'published', got 'both'",
    )


def test_a_state_of_other_options_is_refused() -> None:
    state = json.loads(json.dumps(BeeColony(SPACE, 0).state_dict()))

    with pytest.raises(CheckpointError, match="order was 'batched', is now 'published'"):
        BeeColony(SPACE, 0, order="published").load_state_dict(state)
