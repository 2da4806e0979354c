from __future__ import annotations

import pytest
import torch
from torch import nn

import fastprune as fp
from fastprune.config import make_config
from fastprune.data import load
from fastprune.errors import BudgetError, ConfigError, PlanError
from fastprune.methods import PruneOptions
from fastprune.run.checks import budget_lines, check_oracle, check_reachable, check_recipes


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    )


def test_a_budget_within_reach_passes_and_one_out_of_reach_says_the_range() -> None:
    graph = fp.trace(network(), torch.zeros(1, 3, 8, 8))

    line = check_reachable(PruneOptions(budget={"macs": 0.5}), graph)
    assert line.startswith("macs ")
    assert "size_mb" in line
    with pytest.raises(
        BudgetError,
        match=r"prune\.budget\.macs: 0\.01 .a fraction.*cannot be reached; .* to",
    ):
        check_reachable(PruneOptions(budget={"macs": 0.01}), graph)
    with pytest.raises(BudgetError, match=r"params: 10 cannot"):
        check_reachable(PruneOptions(budget={"params": 10, "macs": 0.5}), graph)
    with pytest.raises(BudgetError, match=r"macs: 1,000,000,000 is met by the unpruned network"):
        check_reachable(PruneOptions(budget={"macs": 1e9}), graph)
    check_reachable(PruneOptions(budget={"params": 1e9, "macs": 0.5}), graph)
    check_reachable(PruneOptions(ratios={"0": 0.5}), graph)


def test_the_oracle_tells_a_right_network_from_a_wrong_one() -> None:
    model = network()
    graph = fp.trace(model, torch.zeros(1, 3, 8, 8))
    plan = fp.solve(graph, fp.criteria.l1(model, graph), {"macs": 0.5})
    small = fp.apply_plan(model, graph, plan)
    images = torch.randn(12, 3, 8, 8)
    found = check_oracle(fp.mask_plan(model, graph, plan), small, images)

    assert found["images"] == 8
    assert found["relative_error"] < 1e-13
    assert next(small.parameters()).dtype == torch.float32
    with torch.no_grad():
        small[0].weight[0, 0, 0, 0] += 0.01
    with pytest.raises(PlanError, match="differs from the masked one by"):
        check_oracle(fp.mask_plan(model, graph, plan), small, images)
    with torch.no_grad():
        small[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(PlanError, match="by nan"):
        check_oracle(fp.mask_plan(model, graph, plan), small, images)


def test_budgets_are_put_beside_what_was_reached() -> None:
    model = network()
    graph = fp.trace(model, torch.zeros(1, 3, 8, 8))
    plan = fp.solve(graph, fp.criteria.l1(model, graph), {"macs": 0.5})
    (line,) = budget_lines({"macs": 0.5}, graph, plan)

    assert line["limit"] == graph.cost().macs / 2
    assert line["reached"] == graph.cost(plan).macs <= line["limit"]
    assert budget_lines(None, graph, plan) == []


def test_recipes_are_held_against_the_images_once_they_are_there() -> None:
    config = make_config(
        {
            "model": {"name": "fastprune.testing.methods:TinyResidual"},
            "data": {"name": "digits", "train_limit": 20, "batch_size": 32},
            "baseline": {},
            "method": "one_shot",
            "prune": {"budget": {"macs": 0.5}},
            "finetune": {"capture": True},
        }
    )
    gpu = torch.device("cuda")

    check_recipes(config, gpu)
    with pytest.raises(
        ConfigError, match=r"^finetune\.capture: 20 images make no whole batch of 32; use auto"
    ):
        check_recipes(config, gpu, load(config.data, 0).train)
