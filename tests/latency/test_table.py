"""Tables of layers: which widths are measured, and what is said between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fastprune.latency.table import (
    LayerKind,
    LayerTable,
    axis_widths,
    coarse_widths,
    points_of,
)

CONV = LayerKind(
    "conv2d",
    ((16, 64, 8, 8), (64, 64, 3, 3)),
    (("", "i", "", ""), ("o", "i", "", "")),
    "",
    64,
    64,
)


def kind(inputs: int, outputs: int, unit: int = 1) -> LayerKind:
    shapes = ((16, max(inputs, 1), 8, 8), (max(outputs, 1), max(inputs, 1), 3, 3))
    letters = "i" if inputs else "", "o" if outputs else ""
    dims = (("", letters[0], "", ""), (letters[1], letters[0], "", ""))
    return LayerKind("conv2d", shapes, dims, "", inputs, outputs, unit)


def table(of: LayerKind, time: Callable[[int, int], float]) -> LayerTable:
    return LayerTable(of, {(a, b): time(a, b) for a, b in points_of(of)})


def test_shapes_follow_the_widths() -> None:
    assert CONV.sizes(16, 40) == [(16, 16, 8, 8), (40, 16, 3, 3)]


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        (0, 1, (0,)),
        (1, 1, (1,)),
        (10, 1, (1, 2, 4, 8, 10)),
        (16, 1, (1, 2, 4, 8, 15, 16)),
        (40, 1, (1, 2, 4, 8, 15, 16, 17, 24, 31, 32, 33, 40)),
        (12, 3, (3, 6, 12)),
    ],
)
def test_every_block_of_a_narrow_side_is_measured(
    size: int, unit: int, expected: tuple[int, ...]
) -> None:
    assert axis_widths(size, unit) == expected


def test_of_a_wide_side_few_blocks_are() -> None:
    widths = axis_widths(2048)

    assert len(widths) == 22
    assert {1, 16, 17, 32, 2033, 2048} <= set(widths)


def test_both_sides_together_are_measured_on_a_coarse_grid() -> None:
    assert coarse_widths(64) == (8, 16, 32)
    assert coarse_widths(2) == (1,)
    assert coarse_widths(0) == ()
    assert {(64, 64), (8, 8), (16, 32), (1, 64), (64, 1)} <= set(points_of(CONV))
    assert points_of(kind(0, 8)) == ((0, 1), (0, 2), (0, 4), (0, 8))
    assert points_of(kind(8, 0)) == ((8, 0), (1, 0), (2, 0), (4, 0))


def test_measured_points_are_said_as_measured() -> None:
    found = table(CONV, lambda a, b: 1 + 0.3 * a + 0.1 * b + 0.01 * a * b)

    for (a, b), time in found.times.items():
        assert found.predict(np.array(a), np.array(b)) == pytest.approx(time)


def worst(found: LayerTable, time: Callable[[int, int], float], least: int = 1) -> float:
    """Largest relative error over all widths from the least on."""
    a, b = np.mgrid[least : found.kind.inputs + 1, least : found.kind.outputs + 1]
    expected = np.vectorize(time)(a, b)
    return float(np.abs(found.predict(a, b) / expected - 1).max())


def test_a_product_of_both_sides_is_said_exactly_where_they_are_straight() -> None:
    def time(a: int, b: int) -> float:
        return 0.01 * (3 + a) * (5 + b)

    assert worst(table(kind(64, 96), time), time) < 1e-9


def test_steps_of_a_block_are_kept_in_blocks_that_were_not_measured() -> None:
    def time(a: int, b: int) -> float:
        return 0.01 * (-(-a // 16)) * (2 + -(-b // 16))

    wide = kind(320, 512)
    assert 300 not in axis_widths(320)
    assert worst(table(wide, time), time) < 1e-9


def test_what_both_sides_share_is_put_right_on_the_coarse_grid() -> None:
    def time(a: int, b: int) -> float:
        return 1 + 0.02 * a + 0.01 * b + 0.002 * a * b

    found = table(kind(64, 64), time)
    # Every group keeps a tenth of its channels unless told otherwise.
    assert worst(found, time, least=7) < 0.05
    product = (time(8, 64) * time(64, 8) / time(64, 64)) / time(8, 8)
    assert product < 0.7
    assert found.predict(np.array(8), np.array(8)) == pytest.approx(time(8, 8))


def test_one_side_alone() -> None:
    found = table(kind(0, 48, 2), lambda _, b: 2.0 * b)

    assert found.predict(np.zeros(2), np.array([10, 48])) == pytest.approx([20, 96])


def test_many_widths_at_once_keep_their_shape() -> None:
    widths = np.full((3, 5), 32.0)

    assert table(CONV, lambda a, b: a * b).predict(widths, widths).shape == (3, 5)


def test_a_table_survives_json() -> None:
    found = table(replace(CONV, detail="None, (1, 1)"), lambda a, b: 0.1 * a + b)
    again = LayerTable.from_json(json.loads(json.dumps(found.to_json())))

    assert again == found


@pytest.mark.parametrize("wrong", ["missing", "negative", "other"])
def test_what_is_no_table_is_refused(wrong: str) -> None:
    given = table(CONV, lambda a, b: a + b).to_json()
    if wrong == "missing":
        given["times"].pop()
    elif wrong == "negative":
        given["times"][0][2] = -1.0
    else:
        del given["kind"]["op"]

    with pytest.raises((ValueError, KeyError)):
        LayerTable.from_json(given)
