"""Spaces, candidates, and the one rule for codes over budget."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from fastprune.errors import BudgetError
from fastprune.search import Candidate, Space
from fastprune.search.base import draw, repair


class AtMost:
    """A budget on the sum of a code, which counts how often and how much it is asked."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[int] = []

    def __call__(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        self.calls.append(len(codes))
        return codes.sum(1) <= self.most


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ((), (), "at least one dimension, got 0 lows and 0 highs"),
        ((1, 1), (3,), "2 lows and 1 highs"),
        ((1, 4), (3, 2), r"got 4 > 2 in place 1"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(
    low: tuple[int, ...], high: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Space(low, high)


def test_a_budget_that_no_code_meets_is_said_at_once() -> None:
    Space((2, 3), (9, 9), AtMost(5))

    with pytest.raises(BudgetError, match=r"no code can meet it; the lowest, 2 3, is still over"):
        Space((2, 3), (9, 9), AtMost(4))


def test_a_predicate_that_answers_with_anything_else_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected \[1\] booleans, got \[1\] int64"):
        Space((1,), (2,), lambda codes: codes.sum(1))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"expected \[1\] booleans, got \[\] bool"):
        Space((1,), (2,), lambda codes: np.bool_(True))  # type: ignore[arg-type, return-value]


def test_a_candidate_comes_back_from_text() -> None:
    candidate = Candidate(7, (1, 10, 3), "employed", 2)

    assert Candidate.from_dict(json.loads(json.dumps(candidate.to_dict()))) == candidate


def test_codes_are_uniform_over_the_whole_range() -> None:
    space = Space((1, 0, 5), (10, 1, 5))

    codes = draw(space, 20_000, np.random.default_rng(0))

    assert codes.dtype == np.int64
    for place, (low, high) in enumerate(zip(space.low, space.high, strict=True)):
        values, counts = np.unique(codes[:, place], return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        # Four standard deviations of a count.
        share = 1 / len(values)
        assert np.abs(counts / 20_000 - share).max() <= 4 * np.sqrt(share * (1 - share) / 20_000)


def test_codes_within_budget_are_left_alone_and_cost_one_call() -> None:
    budget = AtMost(12)
    space = Space((1, 1, 1), (9, 9, 9), budget)
    codes = np.array([[4, 4, 4], [1, 2, 9]])
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    budget.calls.clear()

    assert repair(space, codes, generator).tolist() == codes.tolist()
    assert budget.calls == [2]
    assert generator.bit_generator.state == before


def test_a_code_over_budget_is_lowered_no_further_than_needed() -> None:
    budget = AtMost(20)
    space = Space((1,) * 6, (10,) * 6, budget)
    codes = np.array([[10, 1, 10, 1, 10, 10], [1, 1, 1, 1, 1, 1], [10] * 6])
    given = codes.copy()
    budget.calls.clear()

    repaired = repair(space, codes, np.random.default_rng(0))

    assert (codes == given).all()
    assert (repaired >= 1).all()
    assert (repaired <= codes).all()
    assert repaired.sum(1).tolist() == [20, 6, 20]
    # One look at all, then one down the path of each that is over.
    assert budget.calls == [3, 36, 54]


def test_the_path_down_is_another_each_time_and_reaches_every_dimension() -> None:
    space = Space((1,) * 4, (10,) * 4, AtMost(20))
    generator = np.random.default_rng(0)

    repaired = repair(space, np.full((200, 4), 10), generator)

    assert len(np.unique(repaired, axis=0)) > 50
    assert (np.abs(repaired.mean(0) - 5) < 0.5).all()


def test_a_long_way_down_takes_few_calls() -> None:
    budget = AtMost(50)
    space = Space((1,) * 50, (512,) * 50, budget)
    budget.calls.clear()

    repaired = repair(space, np.full((1, 50), 512), np.random.default_rng(0))

    assert repaired.tolist() == [[1] * 50]
    assert len(budget.calls) <= 11
    assert sum(budget.calls) == 1 + 511 * 50


def test_a_drawn_code_is_never_over_budget() -> None:
    budget = AtMost(9)
    space = Space((1,) * 8, (10,) * 8, budget)

    assert (draw(space, 100, np.random.default_rng(0)).sum(1) <= 9).all()


def test_filling_raises_codes_until_no_step_fits() -> None:
    weights = np.array([1, 2, 3, 5])

    def feasible(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(codes @ weights <= 40, np.bool_)

    space = Space((1,) * 4, (6,) * 4, feasible, fill=True)
    codes = np.array([[1, 1, 1, 1], [6, 6, 6, 6], [6, 6, 5, 1], [2, 5, 1, 4]])

    for seed in range(20):
        repaired = repair(space, codes, np.random.default_rng(seed))

        assert feasible(repaired).all()
        for code in repaired:
            raised = code + np.eye(4, dtype=np.int64)
            assert not (feasible(raised) & (raised <= 6).all(1)).any()
        # What was within budget is only raised.
        assert (repaired[[0, 2, 3]] >= codes[[0, 2, 3]]).all()


def test_filling_takes_a_way_of_its_own_each_time_and_few_calls() -> None:
    budget = AtMost(30)
    space = Space((1,) * 6, (10,) * 6, budget, fill=True)
    generator = np.random.default_rng(0)
    budget.calls.clear()

    repaired = repair(space, np.ones((100, 6), np.int64), generator)

    assert (repaired.sum(1) == 30).all()
    assert len(np.unique(repaired, axis=0)) > 50
    assert len(budget.calls) == 201


def test_filling_without_a_limit_reaches_the_highs() -> None:
    space = Space((1, 2), (9, 100), fill=True)

    assert repair(space, np.array([[1, 2]]), np.random.default_rng(0)).tolist() == [[9, 100]]
