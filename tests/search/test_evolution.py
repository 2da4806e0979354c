"""Evolution against populations, mutations and crossovers worked out by hand."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastprune.errors import CheckpointError, ConfigError
from fastprune.search import Candidate, Evolution, RandomSearch, Space
from fastprune.search.evolution import crossings, mutations, unseen

SPACE = Space((0,) * 6, (30,) * 6)


def small(space: Space = SPACE, seed: int = 0, **options: Any) -> Evolution:
    defaults = {"population": 12, "select_num": 4, "mutation_num": 5, "crossover_num": 4}
    return Evolution(space, seed, **(defaults | {"iterations": 4} | options))


def total(search: Evolution) -> list[list[Candidate]]:
    """Runs to the end; gives the populations."""
    populations = []
    while out := search.ask():
        populations.append(out)
        for candidate in out:
            search.tell(candidate.number, float(sum(candidate.code)))
    return populations


class Drawn:
    """A generator that gives what it was given, one after another."""

    def __init__(self, integers: list[Any], random: Any) -> None:
        self.given, self.given_random = [np.array(g) for g in integers], np.array(random)

    def integers(self, *bounds: Any, size: Any) -> Any:
        return self.given.pop(0)

    def random(self, size: Any) -> Any:
        assert self.given_random.shape == size
        return self.given_random


def test_a_mutation_is_the_published_formula_in_any_range() -> None:
    space = Space((0, 0, 1, 7), (30, 30, 10, 7))
    parents = np.array([[3, 30, 10, 7], [0, 1, 2, 7]])
    generator: Any = Drawn(
        # The parents, then how far: (3 + 30) mod 31, (30 + 1) mod 31, and 10 goes on at 1.
        integers=[[0, 0, 1], [[30, 1, 1, 1], [5, 5, 9, 1], [5, 5, 9, 1]]],
        random=[[0.0, 0.05, 0.09, 0.0], [0.1, 0.5, 0.09, 0.5], [0.1, 0.2, 0.3, 0.4]],
    )

    codes = mutations(space, parents, 3, 0.1, np.arange(4), generator)

    assert codes.tolist() == [[2, 0, 1, 7], [3, 30, 9, 7], [0, 1, 2, 7]]
    assert parents.tolist() == [[3, 30, 10, 7], [0, 1, 2, 7]]


def test_a_mutation_moves_every_dimension_as_often_and_to_every_other_value() -> None:
    space = Space((1, 0, 5, -2), (4, 1, 5, 2))
    parents = np.array([[4, 0, 5, 1]])

    codes = mutations(space, parents, 40_000, 0.1, np.arange(4), np.random.default_rng(0))

    rates = (codes != parents).mean(0)
    assert rates == pytest.approx([0.1, 0.1, 0, 0.1], abs=0.008)
    for place, others in [(0, (1, 2, 3)), (1, (1,)), (3, (-2, -1, 0, 2))]:
        moved = Counter(codes[codes[:, place] != parents[0, place], place].tolist())
        assert tuple(sorted(moved)) == others
        assert min(moved.values()) > 0.85 * max(moved.values())


def test_dimensions_that_belong_together_move_together_each_by_its_own_amount() -> None:
    parents = np.zeros((1, 4), np.int64)
    space = Space((0,) * 4, (30,) * 4)
    parts = np.array([0, 1, 0, 1])

    codes = mutations(space, parents, 1000, 0.5, parts, np.random.default_rng(0))

    moved = codes != 0
    assert (moved[:, 0] == moved[:, 2]).all()
    assert (moved[:, 1] == moved[:, 3]).all()
    assert (moved[:, 0] != moved[:, 1]).any()
    assert len(np.unique(codes[moved[:, 0]][:, [0, 2]], axis=0)) > 300


def test_a_crossover_takes_each_dimension_from_one_of_two() -> None:
    parents = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    # Parents 1 and 2 (1 skips itself), then 2 and 0.
    generator: Any = Drawn([[1, 2], [1, 0]], [[0.4, 0.5, 0.6], [0.9, 0.1, 0.2]])

    codes = crossings(parents, 2, np.arange(3), generator)

    assert codes.tolist() == [[4, 8, 9], [1, 8, 9]]


@pytest.mark.parametrize("parts", [[0, 1, 2, 3, 4], [0, 1, 1, 0, 1]])
def test_crossovers_mix_every_two_parents_evenly(parts: list[int]) -> None:
    parents = np.repeat(np.arange(3)[:, None], 5, axis=1)

    codes = crossings(parents, 6000, np.array(parts), np.random.default_rng(0))

    for place in range(5):
        share = np.bincount(codes[:, place]) / 6000
        assert share == pytest.approx([1 / 3] * 3, abs=0.03)
        same = codes[:, parts.index(parts[place])]
        assert (codes[:, place] == same).all()
    assert {len(set(code)) for code in codes.tolist()} == {1, 2}


def test_populations_are_bred_as_asked_for() -> None:
    search = small()

    populations = total(search)

    assert search.evaluations == 48
    assert [Counter(c.phase for c in out) for out in populations] == [
        {"initial": 12},
        *[{"mutation": 5, "crossover": 4, "random": 3}] * 3,
    ]
    everything = list(itertools.chain(*populations))
    assert [c.number for c in everything] == list(range(48))
    assert all(c.rival is None for c in everything)
    assert search.done
    assert [c for c, _ in search.history] == everything
    assert [f for _, f in search.history] == [float(sum(c.code)) for c in everything]


def test_the_parents_are_the_best_of_all_populations_the_first_of_equals() -> None:
    search = small()
    for number, fitness in enumerate([3.0, 9, 1, 9, 2, 5, 5, 5, 0, 0, 0, 0]):
        search.tell(number, fitness)

    assert [(c.number, f) for c, f in search.parents] == [(1, 9), (3, 9), (5, 5), (6, 5)]

    for candidate in search.ask():
        search.tell(candidate.number, 6.0 if candidate.number == 20 else 4.0)

    assert [(c.number, f) for c, f in search.parents] == [(1, 9), (3, 9), (20, 6), (5, 5)]
    assert search.best == (search.history[1][0], 9)


def test_the_next_population_comes_of_the_parents() -> None:
    space = Space((0,) * 40, (30,) * 40)
    search = small(space, select_num=3, mutation_probability=0.05)
    for candidate in search.ask():
        search.tell(candidate.number, float(candidate.number in (2, 5, 7)))
    parents = [search.history[i][0].code for i in (2, 5, 7)]

    for candidate in search.ask():
        equal = [sum(map(int.__eq__, candidate.code, p)) for p in parents]
        if candidate.phase == "mutation":
            assert 30 <= max(equal) < 40
        elif candidate.phase == "crossover":
            assert sum(sorted(equal)[1:]) >= 40
            assert sorted(equal)[1] >= 8
        else:
            assert max(equal) < 10


@pytest.mark.parametrize("budget", [None, 30, 14])
def test_no_code_is_asked_twice_also_after_a_resume(budget: int | None) -> None:
    space = Space((1,) * 5, (10,) * 5, lambda codes: codes.sum(1) <= (budget or 50))
    whole = [c for out in total(small(space, iterations=30)) for c in out]
    search, asked = small(space, iterations=30), []
    while out := search.ask():
        asked += out
        for candidate in out[::-1]:
            search.tell(candidate.number, float(sum(candidate.code)))
            other = small(space, seed=1, iterations=30)
            other.load_state_dict(json.loads(json.dumps(search.state_dict())))
            search = other

    assert asked == whole
    assert len({c.code for c in whole}) == len(whole) == 360
    assert budget is None or max(sum(c.code) for c in whole) <= budget


def test_the_budget_is_asked_about_many_codes_at_once() -> None:
    calls: list[int] = []

    def feasible(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        calls.append(len(codes))
        return codes.sum(1) <= 90

    search = Evolution(Space((0,) * 6, (30,) * 6, feasible), 0, iterations=3)
    total(search)

    # One in two fits: four codes wanted need two or three looks.
    assert len(calls) <= 1 + 3 * 3 * 4
    assert sum(calls) <= 5 * search.evaluations


def test_random_codes_are_uniform_over_those_within_budget() -> None:
    # One in six fits.
    space = Space((1,) * 3, (10,) * 3, lambda codes: codes.sum(1) <= 11)
    sums: Counter[int] = Counter()
    for seed in range(60):
        search = small(space, seed, population=30, iterations=1)
        sums.update(sum(c.code) for c in search.ask())

    codes = [c for c in itertools.product(range(1, 11), repeat=3) if sum(c) <= 11]
    expected = Counter(map(sum, codes))
    for at, count in expected.items():
        assert sums[at] / 1800 == pytest.approx(count / len(codes), abs=0.04)


def test_where_no_draw_fits_random_codes_are_repaired() -> None:
    space = Space((0,) * 21, (30,) * 21, lambda codes: codes.sum(1) <= 60)
    search = Evolution(space, 0, population=50, select_num=10, iterations=1, crossover_num=20)

    codes = np.array([c.code for c in search.ask()])

    assert (codes.sum(1) == 60).all()
    assert len(np.unique(codes, axis=0)) == 50


def test_codes_that_fill_the_budget_leave_no_step_that_fits() -> None:
    high = np.full(8, 30)

    def feasible(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        assert (codes <= high).all(), "asked about a code that is none"
        return np.asarray((codes * [1, 1, 2, 2, 3, 3, 4, 9]).sum(1) <= 250)

    space = Space((0,) * 8, (30,) * 8, feasible, fill=True)
    populations = total(small(space))

    assert [len(out) for out in populations] == [12] * 4
    assert {c.phase for out in populations for c in out} >= {"initial", "mutation", "crossover"}
    codes = np.array([c.code for out in populations for c in out])
    assert len(np.unique(codes, axis=0)) == 48
    assert feasible(codes).all()
    for code in codes:
        above = code + np.eye(8, dtype=np.int64)
        assert not feasible(above[(above <= high).all(1)]).any()
    plain = total(small(Space((0,) * 8, (30,) * 8, feasible)))
    assert any(feasible(np.array([c.code]) + 1)[0] for c in plain[0] if max(c.code) < 30)


@pytest.mark.parametrize("most", [6, 9, 24])
def test_in_a_small_space_every_code_is_asked_once_and_then_it_ends(most: int) -> None:
    space = Space((1,) * 3, (3, 8, 4), lambda codes: codes.sum(1) <= most)
    every = [
        code
        for code in itertools.product(range(1, 4), range(1, 9), range(1, 5))
        if sum(code) <= most
    ]

    populations = total(small(space, iterations=40))

    assert sorted(c.code for out in populations for c in out) == every
    assert all(len(out) == 12 for out in populations[:-1])


def test_one_code_alone_is_asked_and_then_it_ends() -> None:
    for space in (Space((3, 3), (3, 3)), Space((3, 3), (9, 9), lambda codes: codes.sum(1) <= 6)):
        populations = total(small(space))

        assert [[c.code for c in out] for out in populations] == [[(3, 3)]]


def test_what_was_not_bred_is_drawn() -> None:
    # Of two parents that differ in one place, all crossovers are known.
    search = small(Space((0, 0), (200, 0)), population=8, select_num=2, mutation_num=2)

    populations = total(search)

    assert [Counter(c.phase for c in out) for out in populations[1:]] == [
        {"mutation": 2, "random": 6}
    ] * 3


def test_what_is_left_is_found_from_the_lows_upwards() -> None:
    calls: list[int] = []

    def feasible(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        calls.append(len(codes))
        return codes.sum(1) <= 3

    space = Space((0,) * 4, (2,) * 4, feasible)
    every = {c for c in itertools.product(range(3), repeat=4) if sum(c) <= 3}
    generator = np.random.default_rng(0)
    seen = {(0, 0, 0, 0), (1, 0, 0, 0)}
    calls.clear()

    found = unseen(space, seen, 5, generator)

    assert sorted(map(sum, found.tolist())) == [1, 1, 1, 2, 2]
    assert calls == [4, 10]
    assert {tuple(c) for c in unseen(space, seen, 99, generator).tolist()} == every - seen
    assert unseen(space, every, 5, generator).shape == (0, 4)


def test_options_out_of_range_are_refused_together() -> None:
    with pytest.raises(ConfigError) as error:
        Evolution(
            SPACE,
            0,
            population=10,
            select_num=1,
            mutation_num=8,
            crossover_num=3,
            iterations=0,
            mutation_probability=0,
        )

    assert error.value.problems == (
        "iterations: expected at least 1, got 0",
        "select_num: expected 2 to 10, the population, got 1",
        "mutation_num, crossover_num: expected at most 10 together, the population, got 11",
        "mutation_probability: expected above 0 and at most 1, got 0",
    )
    with pytest.raises(ValueError, match="together: expected 6 labels, one a dimension, got 2"):
        Evolution(SPACE, 0, together=["a", "b"])


def test_a_state_of_something_else_is_refused() -> None:
    state = json.loads(json.dumps(small(together=list("aabbcc")).state_dict()))

    small(together=tuple("aabbcc")).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"together was \['a', .* is now None"):
        small().load_state_dict(state)
    with pytest.raises(CheckpointError, match="algorithm was 'evolution'"):
        RandomSearch(SPACE, 0, evaluations=5).load_state_dict(state)
