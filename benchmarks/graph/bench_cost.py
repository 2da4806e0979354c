"""Closed-form cost of many candidates, against counting one after another by a forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _facts import bound
from _interleave import compare
from _networks import network
from torch.utils.flop_counter import FlopCounterMode

import fastprune as fp

CANDIDATES = 1_000


@pytest.mark.benchmark(timer=time.process_time)
def bench_costs(benchmark: Any, gate: Callable[..., None]) -> None:
    model, example = network("resnet50")
    graph = fp.trace(model, example)
    sizes = np.array([group.channels for group in graph.groups])
    widths = np.random.default_rng(0).integers(1, sizes + 1, size=(CANDIDATES, len(sizes)))
    costs = graph.costs(widths)

    for row in range(3):
        plan = fp.PruningPlan(
            {g.name: tuple(range(n)) for g, n in zip(graph.groups, widths[row], strict=True)}
        )
        small = fp.apply_plan(model, graph, plan)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            small(example)
        assert costs.macs[row] == counter.get_total_flops() // 2
        assert costs.params[row] == sum(p.numel() for p in small.parameters())

    def ours() -> object:
        return graph.costs(widths)

    def one_forward() -> None:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(example)

    found = compare(benchmark, ours, one_forward, rounds=25, rival_rounds=5)
    gate(
        "costs/resnet50",
        found,
        rival="torch's flop counter, one candidate",
        candidates=CANDIDATES,
    )
    limit = bound("costs/resnet50_ms")
    assert 1e3 * found.ours.best < limit, f"{1e3 * found.ours.best:.2f} ms, under {limit} ms"
