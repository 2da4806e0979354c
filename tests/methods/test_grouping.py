from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastprune.errors import TrainingError
from fastprune.methods._grouping import (
    Grouping,
    Groups,
    Similarity,
    group_classes,
    similarity,
)

NAMES = ("plane", "cat", "dog", "ship")
LOGITS = np.array([[9.0, 0, 0, 4], [0, 8, 6, 0], [0, 5, 7, 1], [3, 0, 0, 6]])


def grouping(kind: Similarity = "cosine") -> Grouping:
    return group_classes(similarity(LOGITS, kind), NAMES, kind)


def naive_groups(alike: np.ndarray, devices: int) -> Groups:
    """Average linkage by its definition: the two clusters of the smallest mean distance."""
    clusters = [(k,) for k in range(len(alike))]
    while len(clusters) > devices:
        one, other = min(
            combinations(clusters, 2),
            key=lambda pair: np.mean([1 - alike[a, b] for a in pair[0] for b in pair[1]]),
        )
        clusters = [c for c in clusters if c not in (one, other)] + [one + other]
    return tuple(sorted(tuple(sorted(cluster)) for cluster in clusters))


def test_cosine_is_that_of_the_angle() -> None:
    found = similarity(np.array([[3.0, 4, 0], [4, 3, 0], [0, 0, -2]]), "cosine")

    np.testing.assert_allclose(found, [[1, 0.96, 0], [0.96, 1, 0], [0, 0, 1]], atol=1e-15)


def test_covariance_is_the_correlation() -> None:
    found = similarity(LOGITS, "covariance")

    np.testing.assert_allclose(found, np.corrcoef(LOGITS), atol=1e-14)
    # Softmax does not see what is added to all logits of a class.
    moved = LOGITS + np.array([[5.0], [-3], [0], [100]])
    np.testing.assert_allclose(similarity(moved, "covariance"), found, atol=1e-12)
    assert np.abs(similarity(moved, "cosine") - similarity(LOGITS, "cosine")).max() > 0.1


@pytest.mark.parametrize("kind", ["cosine", "covariance"])
def test_distances_are_valid(kind: Similarity) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 40))
    # Rounding takes the product of equal rows past 1.
    rows[1::2] = rows[::2] * np.arange(1, 21)[:, None]
    before = rows.copy()
    found = similarity(rows, kind)

    assert np.array_equal(found, found.T)
    assert np.array_equal(np.diag(found), np.ones(40))
    assert found.min() >= -1
    assert found.max() <= 1
    assert np.array_equal(rows, before)


@pytest.mark.parametrize(
    ("row", "kind", "what"),
    [
        ([0.0, 0, 0, 0], "cosine", "zero"),
        ([0.0, 0, 0, 0], "covariance", "all the same"),
        ([0.1, 0.1, 0.1, 0.1], "covariance", "all the same"),
    ],
)
def test_a_class_without_direction_is_refused(row: list[float], kind: Any, what: str) -> None:
    rows = LOGITS.copy()
    rows[2] = row
    with pytest.raises(TrainingError, match=f"class 2 are {what}"):
        similarity(rows, kind)


def test_what_rounding_leaves_of_equal_logits_is_no_direction() -> None:
    row = np.full(3, 0.1)
    assert np.any(row - row.mean())
    with pytest.raises(TrainingError, match="class 1 are all the same"):
        similarity(np.array([[1.0, 2, 4], row, [3, 1, 0]]), "covariance")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        similarity(LOGITS, "euclid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected finite numbers \[K, M\], got \(4,\)"):
        similarity(LOGITS[0])
    with pytest.raises(ValueError, match="expected finite numbers"):
        similarity(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="at least two classes"):
        group_classes(np.ones((1, 1)), ("one",), "cosine")
    with pytest.raises(ValueError, match=r"got \(4, 4\) for 3 names"):
        group_classes(similarity(LOGITS), NAMES[:3], "cosine")
    with pytest.raises(ValueError, match="expected 2 to 4, the classes, got 5"):
        grouping().groups(5)
    with pytest.raises(ValueError, match="got 1"):
        grouping().groups(1)


@pytest.mark.parametrize("kind", ["cosine", "covariance"])
def test_classes_that_are_alike_go_together(kind: Similarity) -> None:
    found = grouping(kind)

    assert found.devices == range(2, 5)
    assert found.groups(2) == ((0, 3), (1, 2))
    # Cats and dogs are the more alike.
    assert found.groups(3) == ((0,), (1, 2), (3,))
    assert found.groups(4) == ((0,), (1,), (2,), (3,))


@given(st.integers(0, 1000), st.integers(2, 12))
def test_groups_are_those_of_average_linkage(seed: int, count: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, 12))
    alike = similarity(rows)
    found = group_classes(alike, [str(k) for k in range(count)], "cosine")

    for devices in found.devices:
        assert found.groups(devices) == naive_groups(alike, devices)


def test_equal_distances_leave_as_many_groups_as_devices() -> None:
    found = group_classes(np.eye(6), "abcdef", "cosine")

    for devices in found.devices:
        groups = found.groups(devices)
        assert len(groups) == devices
        assert sorted(sum(groups, ())) == list(range(6))
        assert list(groups) == sorted(tuple(sorted(group)) for group in groups)
    assert group_classes(np.eye(6), "abcdef", "cosine") == found


def test_a_grouping_goes_through_json() -> None:
    found = grouping("covariance")
    content = json.loads(json.dumps(found.to_json()))

    assert content == found.to_json()
    assert content["groups"]["2"] == [[0, 3], [1, 2]]
    assert Grouping.from_json(content) == found
    assert hash(Grouping.from_json(content)) == hash(found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"similarity": "euclid"}, "similarity: Input should be 'cosine' or 'covariance'"),
        ({"classes": ["a"]}, "expected at least two to group, got 1"),
        ({"classes": ["a", "b", "c"]}, "expected 2 merges of 3 classes, got 3"),
        ({"linkage": [[0, 1, 0.1, 2], [2, 3, 0.2, 2]]}, "expected 3 merges of 4 classes, got 2"),
        (
            {"linkage": [[0, 1, 0.1, 2], [0, 3, 0.2, 2], [4, 5, 0.3, 4]]},
            "merge 1: no two clusters 0 and 3",
        ),
        (
            {"linkage": [[0, 1, 0.1, 2], [2, 3, 0.05, 2], [4, 5, 0.3, 4]]},
            "merge 1: expected 2 classes at a distance of 0.1 or more, got 2 at 0.05",
        ),
        (
            {"linkage": [[0, 1, 0.1, 3], [2, 3, 0.2, 2], [4, 5, 0.3, 4]]},
            "merge 0: expected 2 classes",
        ),
        ({"linkage": [[0, 1, float("nan"), 2]] * 3}, "linkage"),
        (
            {"linkage": [[0, 0, 0.1, 2], [2, 3, 0.2, 2], [4, 5, 0.3, 4]]},
            "merge 0: no two clusters 0 and 0",
        ),
        ({"groups": {"2": [[0, 1], [2, 3]]}}, "groups: not those that the linkage gives"),
        ({"more": 1}, "more: "),
    ],
)
def test_json_of_no_grouping_is_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Grouping.from_json(grouping().to_json() | change)


def test_other_json_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a grouping, got list"):
        Grouping.from_json([])
