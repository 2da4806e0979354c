from __future__ import annotations

import numpy as np

from fastprune.data._draws import (
    epoch_draws,
    epoch_order,
    image_generator,
    stratified_order,
    weighted_order,
)


def test_an_order_holds_every_image_once_and_changes_by_epoch_and_seed() -> None:
    indices = np.arange(5, 205)
    orders = [epoch_order(indices, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(order) == list(indices)
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(orders[0], epoch_order(indices, 0, 0))


def test_the_draws_of_an_image_do_not_depend_on_how_many_images_there_are() -> None:
    few, many = epoch_draws(3, 7, 10, 3), epoch_draws(3, 7, 1000, 3)
    np.testing.assert_array_equal(few, many[:10])
    assert not np.array_equal(few, epoch_draws(3, 8, 10, 3))
    assert abs(many.mean() - 0.5) < 0.02


def test_images_have_generators_of_their_own() -> None:
    drawn = {tuple(image_generator(0, e, i).random(8)) for e in range(2) for i in range(50)}
    assert len(drawn) == 100
    assert image_generator(0, 1, 2).random() == image_generator(0, 1, 2).random()


def test_every_first_part_of_a_stratified_order_is_in_proportion() -> None:
    labels = np.repeat(np.arange(4), (10, 20, 30, 140))
    np.random.default_rng(0).shuffle(labels)
    order = stratified_order(labels, 1)
    assert sorted(order) == list(range(200))
    for first in (1, 7, 20, 33, 100, 150):
        counts = np.bincount(labels[order[:first]], minlength=4)
        assert np.abs(counts - first * np.bincount(labels) / 200).max() <= 1
    assert not np.array_equal(order, stratified_order(labels, 2))


def test_a_weighted_order_draws_with_repetition_in_proportion_and_follows_seed_and_epoch() -> None:
    indices = np.arange(100, 10100)
    weights = np.where(indices < 2100, 9.0, 1.0)
    drawn = weighted_order(indices, weights, 3, 5)
    assert drawn.shape == indices.shape
    assert drawn.dtype == np.int64
    # 2,000 of weight 9 and 8,000 of 1: 18 in 26, give or take three deviations.
    assert abs((drawn < 2100).mean() - 18 / 26) < 3 * np.sqrt(18 / 26 * 8 / 26 / 10000)
    # Evenly within each: 6923 draws of 2,000 leave exp(-3.46) of them out.
    assert abs(len(np.unique(drawn[drawn < 2100])) - 2000 * (1 - np.exp(-3.4615))) < 40
    np.testing.assert_array_equal(drawn, weighted_order(indices, weights, 3, 5))
    for other in (weighted_order(indices, weights, 4, 5), weighted_order(indices, weights, 3, 6)):
        assert not np.array_equal(drawn, other)


def test_what_has_no_weight_is_never_drawn() -> None:
    weights = np.array([0.0, 1.0, 0.0, 2.0, 0.0])
    drawn = [weighted_order(np.arange(5), weights, 0, epoch) for epoch in range(50)]
    assert set(np.concatenate(drawn).tolist()) == {1, 3}
