"""Every registered method does what all methods must."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fastprune.methods import MethodContext, MethodResult, PruneOptions, registry
from fastprune.methods.one_shot import OneShotOptions, one_shot
from fastprune.testing.methods import check_method

TRAIN = {"epochs": 1, "lr": 0.05}
HALF = PruneOptions(budget={"macs": 0.5})

COLONY = {"food_number": 2, "max_cycle": 1, "food_limit": 1, "calfitness_epoch": 1}
EVOLUTION = {
    "pruningnet": TRAIN,
    "population": 3,
    "select_num": 2,
    "mutation_num": 1,
    "crossover_num": 1,
    "iterations": 2,
}
TICKET = {"train": TRAIN, "pruning_times": 2, "rate": 0.5}

# Options that send each method through all of its parts.
CASES: dict[str, list[tuple[dict[str, Any], PruneOptions | None]]] = {
    "abc": [
        ({**COLONY, "inherit": "taylor", "racing": True, "calfitness_epoch": 2}, None),
        ({**COLONY, "order": "published", "fitness_metric": "top5"}, HALF),
        ({**COLONY, "search": "random", "units": "stage", "fitness_split": "test"}, None),
        ({"code": "5 5", "inherit": "first"}, None),
        ({**COLONY, "evaluator": "shared", "calfitness_epoch": 0}, HALF),
    ],
    "lottery": [
        ({**TICKET, "variant": "imp", "rewind_epoch": 1}, None),
        ({**TICKET, "criterion": "saliency", "fillback_rate": 0.3, "start": "lt"}, None),
        ({**TICKET, "variant": "rst", "start": "pt", "ranking": "layer"}, None),
        ({**TICKET, "variant": "rsst", "rewind_epoch": 0, "prune_each_state": False}, None),
    ],
    "apoz": [
        ({"threshold": 0.6, "classes": [3, 5]}, None),
        ({"batches": 2}, HALF),
    ],
    "metapruning": [
        ({**EVOLUTION}, HALF),
        ({**EVOLUTION, "weights": "generated", "racing": True, "moves": "stage"}, None),
        ({"gene": "30 7"}, None),
        ({"gene": "30 7", "weights": "generated", "pruningnet": TRAIN}, HALF),
    ],
    "one_shot": [
        ({}, HALF),
        ({"criterion": "taylor", "batches": 2}, HALF),
        ({"criterion": "random", "iterations": 2, "finetune_between": 1}, HALF),
        ({"criterion": ["l1", "random"], "evaluator": "shared"}, HALF),
    ],
    "papm": [
        ({"params_reduction": 0.5, "classes": [3, 5]}, None),
        ({"alpha": 0.2, "size_mb": 0.5, "batches": 2}, HALF),
    ],
    "slimming": [
        ({"train": TRAIN, "ratio": 0.4}, None),
        ({"train": TRAIN, "start": "baseline", "penalty": "proximal"}, HALF),
        ({"start": "baseline", "ratio": 0.4, "mode": "masked"}, None),
        ({"train": TRAIN, "ratio": 0.4, "scratch": "B"}, None),
    ],
}


def test_every_method_has_its_cases() -> None:
    plans = {name for name in registry.names() if not registry.get(name).options.ensemble}
    assert set(CASES) == plans


@pytest.mark.parametrize(
    ("name", "options", "prune"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_methods_conform(
    name: str, options: dict[str, Any], prune: PruneOptions | None, tmp_path: Path
) -> None:
    result = check_method(tmp_path, {"name": name, **options}, prune)

    assert result.plan.keep


def test_a_method_that_alters_the_network_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiling(context: MethodContext, options: OneShotOptions) -> MethodResult:
        result = one_shot(context, options)
        nn.init.zeros_(context.model.get_parameter("fc.bias"))
        return result

    entry = dataclasses.replace(registry.get("one_shot"), build=spoiling)
    monkeypatch.setattr(registry, "get", lambda name: entry)
    with pytest.raises(AssertionError, match="was altered"):
        check_method(tmp_path, {"name": "one_shot"}, HALF)
