"""Dropping candidates while their images come in: by hand, and over many populations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fastprune.training._racing import Racing, Standing


def raced(
    right: npt.NDArray[np.bool_], leaders: int | None, batch: int = 100
) -> tuple[Racing, list[Standing]]:
    racing = Racing(len(right), leaders, right.shape[1])
    for first in range(0, right.shape[1], batch):
        racing.add(right[list(racing.remaining), first : first + batch])
    return racing, racing.standings()


def drawn(levels: npt.ArrayLike, images: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Candidates right with given chances; how hard an image is is common to all."""
    rng = np.random.default_rng(seed)
    hard = rng.random(images) * 0.8 + rng.random((len(np.atleast_1d(levels)), images)) * 0.2
    return np.asarray(hard < np.asarray(levels, float)[:, None])


def fitness(right: npt.NDArray[np.bool_]) -> list[float]:
    return [100 * int(row.sum()) / right.shape[1] for row in right]


def test_without_leaders_everyone_sees_everything() -> None:
    right = drawn([0.1, 0.9, 0.5], 500)
    racing, found = raced(right, None)

    assert racing.remaining == (0, 1, 2)
    assert found == [Standing(reached, 500, False) for reached in fitness(right)]


def test_the_hopeless_are_dropped_and_the_rest_are_measured_whole() -> None:
    levels = [0.2, 0.9, 0.3, 0.88, 0.89, 0.25]
    right = drawn(levels, 2000)
    racing, found = raced(right, 3)
    whole = fitness(right)

    assert racing.remaining == (1, 3, 4)
    for number in racing.remaining:
        assert found[number] == Standing(whole[number], 2000, False)
    third = min(whole[number] for number in racing.remaining)
    for number in (0, 2, 5):
        assert found[number].dropped
        assert found[number].images == 100
        assert found[number].fitness < third
        # An estimate from the first hundred images.
        assert found[number].fitness == pytest.approx(whole[number], abs=20)


def test_an_easy_beginning_does_not_flatter_the_dropped() -> None:
    right = np.ones((3, 1000), bool)
    right[:, 500:] = np.arange(500) % 2 == 0
    # The last is wrong in 20 of the first 50, and then dropped.
    right[2, :20] = False
    _, found = raced(right, 2, batch=50)

    assert found[2] == Standing(75.0 - 40.0, 50, True)
    assert found[0] == Standing(75.0, 1000, False)


def test_a_bar_may_be_dropped_itself() -> None:
    images = 2000
    right = np.ones((4, images), bool)
    right[3, :30] = False  # dropped at once, against number 2, which is third
    right[0, :5] = right[1, :5] = False
    right[2, 100:200] = False  # the bar of before, dropped later
    racing, found = raced(right, 1)

    assert racing.remaining in ((0, 1), (0,), (1,))
    best = found[0].fitness
    assert found[2].dropped
    assert 100 < found[2].images < images
    assert 0 <= found[3].fitness < found[2].fitness < best


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_more_candidates_than_leaders_drop_nothing(count: int) -> None:
    right = drawn(np.linspace(0.1, 0.9, count), 400)

    assert raced(right, 3)[0].remaining == tuple(range(count))


def test_equal_candidates_all_stay() -> None:
    right = np.repeat(drawn([0.5], 600), 8, axis=0)

    assert raced(right, 2)[0].remaining == tuple(range(8))


def test_the_true_best_stay_and_images_are_saved() -> None:
    kept = seen = 0
    for seed in range(20):
        levels = np.random.default_rng(seed).normal(0.55, 0.08, 40)
        right = drawn(levels, 2000, seed)
        whole = np.array(fitness(right))
        true = set(np.argsort(-whole, kind="stable")[:10].tolist())
        result = raced(right, 10)[1]
        found = np.array([standing.fitness for standing in result])
        kept += len(true & set(np.argsort(-found, kind="stable")[:10].tolist()))
        seen += sum(standing.images for standing in result)

    assert kept >= 0.99 * 20 * 10
    assert seen < 0.65 * 20 * 40 * 2000


def test_batches_of_any_size_do() -> None:
    right = drawn(np.linspace(0.2, 0.9, 10), 990)

    for batch in (7, 64, 300, 990):
        racing, found = raced(right, 3, batch)
        survivors = [found[number].fitness for number in racing.remaining]
        assert survivors == [fitness(right)[number] for number in racing.remaining]
        assert set(np.argsort(fitness(right))[-3:]) <= set(racing.remaining)
