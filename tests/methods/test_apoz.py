"""The methods apoz and papm: thresholds, limits, images of some classes, and their options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fastprune import criteria
from fastprune.config import make_config
from fastprune.errors import ConfigError, FastpruneError, PlanError
from fastprune.graph import solve, trace
from fastprune.methods import MethodResult, PruneOptions, registry
from fastprune.methods.apoz import ApozOptions, plan_by_threshold
from fastprune.methods.papm import PapmOptions
from fastprune.models import resolve
from fastprune.testing.methods import TinyResidual, method_context
from fastprune.training import EarlyStopOptions, FocusOptions

FREE = PruneOptions(min_channels=0)


def planned(folder: Path, given: dict[str, Any], prune: PruneOptions = FREE) -> MethodResult:
    entry = registry.get(given["name"])
    options = entry.options.model_validate(given)
    return entry.build(method_context(folder, options, prune), options)


def apoz_of(folder: Path, classes: tuple[int, ...] = tuple(range(10))) -> dict[str, torch.Tensor]:
    """Over the training images of these classes, picked one by one."""
    context = method_context(folder, ApozOptions(), FREE)
    images = [
        (x[i : i + 1], y[i : i + 1])
        for x, y in context.splits.train.epoch(0)
        for i in range(len(y))
        if int(y[i]) in classes
    ]
    return criteria.zero_counts(context.model, context.graph, images).apoz(context.graph)


def test_a_threshold_drops_what_is_above_it(tmp_path: Path) -> None:
    found = apoz_of(tmp_path / "a")
    limit = float(torch.cat(list(found.values())).median())

    result = planned(tmp_path / "b", {"name": "apoz", "threshold": limit})

    for name, kept in result.plan.keep.items():
        assert kept == tuple(torch.nonzero(found[name] <= limit).flatten().tolist())
    assert result.notes["images"] == 96
    assert result.notes["highest_apoz"] == max(float(f.max()) for f in found.values())


def test_only_images_of_the_classes_count(tmp_path: Path) -> None:
    found, every = apoz_of(tmp_path / "a", (3, 5)), apoz_of(tmp_path / "a")

    result = planned(tmp_path / "b", {"name": "apoz", "threshold": 0.5, "classes": [5, 3]})

    assert result.notes["classes"] == [3, 5]
    assert 0 < result.notes["images"] < 96
    assert result.notes["mean_apoz"] == float(torch.cat(list(found.values())).mean())
    assert result.notes["mean_apoz"] != float(torch.cat(list(every.values())).mean())


def test_fine_tuning_is_for_the_classes(tmp_path: Path) -> None:
    given = {"name": "papm", "params_reduction": 0.4}
    recipe = planned(tmp_path / "a", {**given, "classes": [5, 3]}).finetune
    assert recipe is not None
    assert recipe.focus == FocusOptions(classes=(3, 5), sample_ratio=9, weight=5)
    assert (recipe.keep, recipe.early_stop) == ("best", EarlyStopOptions(patience=10))
    assert recipe.lr == 0.05
    assert planned(tmp_path / "b", given).finetune is None
    entry, own = registry.get("papm"), FocusOptions(classes=(3, 5), weight=2)
    options = entry.options.model_validate({**given, "classes": [3, 5]})
    context = method_context(tmp_path / "c", options, FREE)
    assert context.finetune is not None
    kept = context.finetune.model_copy(
        update={"focus": own, "early_stop": EarlyStopOptions(patience=2)}
    )
    found = entry.build(dataclasses.replace(context, finetune=kept), options).finetune
    assert found.focus == own
    assert found.early_stop.patience == 2
    assert entry.build(dataclasses.replace(context, finetune=None), options).finetune is None


GRAPH = trace(TinyResidual(), torch.zeros(1, 3, 32, 32))
APOZ = {
    "stem": torch.tensor([0.1, 0.9, 0.5, 0.5, 0.7, 0.2, 0.3, 1.0], dtype=torch.float64),
    "conv1": torch.tensor([0.9, 0.9, 0.9, 0.8, 0.9, 0.9, 0.9, 0.9], dtype=torch.float64),
}


@pytest.mark.parametrize(
    ("threshold", "options", "stem", "conv1"),
    [
        (0.5, {}, (0, 2, 3, 5, 6), (3,)),
        (0.5, {"min_channels": 2}, (0, 2, 3, 5, 6), (0, 3)),
        (0.5, {"min_channels": 0.25}, (0, 2, 3, 5, 6), (0, 3)),
        (0.5, {"round_to": 4}, tuple(range(8)), (0, 1, 2, 3)),
        (0.4, {"round_to": 4}, (0, 2, 5, 6), (0, 1, 2, 3)),
        ({"stem": 0.2}, {}, (0, 5), tuple(range(8))),
        ({"*": 0.2, "conv?": 0.8}, {}, (0, 5), (3,)),
    ],
)
def test_plans_by_threshold(
    threshold: Any, options: dict[str, Any], stem: tuple[int, ...], conv1: tuple[int, ...]
) -> None:
    plan = plan_by_threshold(GRAPH, APOZ, threshold, **options)

    assert plan.keep == {"stem": stem, "conv1": conv1}


def test_a_threshold_that_drops_nothing_says_how_high_apoz_is() -> None:
    with pytest.raises(PlanError, match=r"the highest APoZ is 1\.0000"):
        plan_by_threshold(GRAPH, APOZ, 0.95, round_to=8)
    with pytest.raises(PlanError, match=r"'steem'.*'stem'"):
        plan_by_threshold(GRAPH, APOZ, {"steem": 0.5})


def test_ranked_by_apoz_within_a_budget(tmp_path: Path) -> None:
    found = apoz_of(tmp_path / "a")
    expected = solve(GRAPH, {n: 1 - f for n, f in found.items()}, {"params": 0.6})

    prune = PruneOptions(budget={"params": 0.6})
    assert planned(tmp_path / "b", {"name": "apoz"}, prune).plan == expected


def test_papm_takes_the_criterion_s_lowest(tmp_path: Path) -> None:
    context = method_context(tmp_path / "a", PapmOptions(), FREE)
    scores = criteria.papm(
        context.model, context.graph, batches=context.splits.train.epoch(0), alpha=0.3
    )
    expected = solve(context.graph, scores, {"params": 0.6}, min_channels=0)

    given = {"name": "papm", "alpha": 0.3, "params_reduction": 0.4}
    result = planned(tmp_path / "b", given)

    assert result.plan == expected
    kept = torch.cat([scores[name][list(kept)] for name, kept in expected.keep.items()])
    assert result.notes["threshold"] <= 1
    assert result.notes["threshold"] <= float(kept.max())


@pytest.mark.parametrize("options", [{}, {"size_mb": 9.0}])
def test_a_resnet18_of_23_percent_keeps_eights_and_comes_close(options: dict[str, float]) -> None:
    model = resolve("resnet18").make(num_classes=10, stem="small")
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    full = graph.cost()
    assert (full.params, full.macs) == (11_173_962, 555_422_720)
    assert full.size_mb * 1e6 / 2**20 == pytest.approx(42.66, abs=0.005)
    draw = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.channels, generator=draw) for g in graph.groups}
    prune = PruneOptions(min_channels=8, round_to=8)
    asked = PapmOptions(params_reduction=0.77, **options).in_force(prune)
    assert asked.budget == {"params": 0.23, **options}

    plan = solve(graph, scores, asked.budget, round_to=8, min_channels=8)

    cost, widths = graph.cost(plan), plan.widths()
    assert cost.params <= 2_570_011
    assert cost.size_mb <= options.get("size_mb", 9.9 * 2**20 / 1e6)
    assert all(width >= 8 and width % 8 == 0 for width in widths.values())
    # Any step of eight channels more of any group would be too many.
    for name, width in widths.items():
        if width < graph.group(name).channels:
            wider = graph.cost({**widths, name: width + 8})
            over = wider.params > 2_570_011 or wider.size_mb > options.get("size_mb", 99)
            assert over or cost.params > 0.9995 * 2_570_011


@pytest.mark.parametrize(
    ("name", "given", "prune", "message"),
    [
        ("apoz", {}, {}, "method.threshold: expected an APoZ"),
        ("apoz", {"threshold": 0.5}, {"budget": {"macs": 0.5}}, "prune.budget: has no part"),
        ("apoz", {"threshold": 1.5}, {}, "method.threshold"),
        ("apoz", {"threshold": 0.5, "classes": [3, 3]}, {}, "method.classes: expected different"),
        ("apoz", {"threshold": 0.5, "classes": []}, {}, "method.classes: expected different"),
        ("papm", {"size_mb": 1, "classes": [3]}, {}, "data.validation: got 0"),
        ("papm", {}, {}, "method.params_reduction: expected how much"),
        ("papm", {"alpha": 1.5, "size_mb": 1.0}, {}, "method.alpha"),
        ("papm", {"params_reduction": 1.0}, {}, "method.params_reduction"),
        (
            "papm",
            {"params_reduction": 0.5},
            {"budget": {"params": 0.5}},
            "method.params_reduction: prune.budget.params is given too",
        ),
        ("papm", {"size_mb": 9}, {"budget": {"size_mb": 9}}, "method.size_mb: prune.budget"),
    ],
)
def test_options_that_do_not_go_together(
    name: str, given: dict[str, Any], prune: dict[str, Any], message: str
) -> None:
    whole = {
        "model": {"name": "resnet20_cifar"},
        "data": {"name": "digits", "validation": 0},
        "baseline": {"epochs": 1},
        "method": {"name": name, **given},
        "prune": prune,
    }
    with pytest.raises(ConfigError, match=message):
        make_config(whole)


def test_classes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FastpruneError, match="labels of 0 to 9, got 10"):
        planned(tmp_path, {"name": "apoz", "threshold": 0.5, "classes": [3, 10]})
    with pytest.raises(ValidationError, match="at least 0"):
        ApozOptions(classes=(-1,))
