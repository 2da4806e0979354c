"""Plans are plain data: checked, hashable, and the same after JSON."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from fastprune.errors import PlanError
from fastprune.graph import PruningPlan

PLAN = PruningPlan({"a": (0, 2, 3), "b": (1,)}, {"a": 4, "b": 2})


def test_json_gives_the_same_plan() -> None:
    data = json.loads(json.dumps(PLAN.to_json()))

    assert PruningPlan.from_json(data) == PLAN
    assert PruningPlan.from_json(data).digest == PLAN.digest


def test_widths_are_the_kept_channels() -> None:
    assert PLAN.widths() == {"a": 3, "b": 1}


def test_the_digest_is_of_the_content() -> None:
    assert PruningPlan({"b": [1], "a": [0, 2, 3]}).digest == PLAN.digest
    assert PruningPlan({"a": (0, 2), "b": (1,)}).digest != PLAN.digest


def test_plans_can_be_keys_copies_and_pickles() -> None:
    same = PruningPlan({"a": (0, 2, 3), "b": (1,)}, {"a": 4, "b": 2})

    assert len({PLAN, same, copy.deepcopy(PLAN), pickle.loads(pickle.dumps(PLAN))}) == 1


@pytest.mark.parametrize("kept", [range(3), np.arange(3), torch.arange(3), [0, np.int32(1), 2]])
def test_indices_may_come_from_anywhere(kept: Any) -> None:
    assert PruningPlan({"a": kept}).keep == {"a": (0, 1, 2)}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "expected a JSON object"),
        ([], "expected a JSON object"),
        ({}, "expected a JSON object"),
        ({"keep": []}, "expected a JSON object"),
        ({"keep": {"a": "abc"}}, r"keep\['a'\]: expected channel indices"),
        ({"keep": {"a": [0.5]}}, r"keep\['a'\]: expected channel indices"),
        ({"keep": {"a": [True]}}, r"keep\['a'\]: expected channel indices"),
        ({"keep": {"a": [[0]]}}, r"keep\['a'\]: expected channel indices"),
        ({"keep": {"a": None}}, r"keep\['a'\]: expected channel indices"),
        ({"keep": {"a": [float("inf")]}}, r"keep\['a'\]: expected channel indices"),
        ({"keep": {"a": []}}, r"keep\['a'\]: keeps no channel"),
        ({"keep": {"a": [-1, 0]}}, "sorted channel indices"),
        ({"keep": {"a": [2, 1]}}, "sorted channel indices"),
        ({"keep": {"a": [1, 1]}}, "sorted channel indices"),
        ({"keep": {"a": [4]}, "channels": {"a": 4}}, "channel 4 does not exist; the group has 4"),
        ({"keep": {"a": [0]}, "channels": "x"}, "plan.channels"),
        ({"keep": {"a": [0]}, "channels": {"a": "x"}}, "plan.channels"),
        ({"keep": {"a": [0]}, "channels": {"a": 0}}, "plan.channels"),
        ({"keep": {"a": [0]}, "format": 9}, "plan.format: got 9"),
        ({"keep": {"a": [0]}, "digest": "x"}, "plan.digest: got 'x'"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(data: Any, says: str) -> None:
    with pytest.raises(PlanError, match=says) as refusal:
        PruningPlan.from_json(data)
    assert "\n" not in str(refusal.value)


def test_composed_plans_are_one_plan_of_the_first_network() -> None:
    second = PruningPlan({"a": (0, 2), "c": (5,)}, {"a": 3, "c": 6})

    both = PruningPlan.compose(PLAN, second)

    assert both.keep == {"a": (0, 3), "b": (1,), "c": (5,)}
    assert both.channels == {"a": 4, "b": 2, "c": 6}


@pytest.mark.parametrize("second", [PruningPlan({"a": (3,)}), PruningPlan({"a": (0,)}, {"a": 4})])
def test_a_plan_of_another_network_does_not_compose(second: PruningPlan) -> None:
    with pytest.raises(PlanError, match="the first plan leaves 3"):
        PruningPlan.compose(PLAN, second)
