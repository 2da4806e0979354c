"""Trace and channel groups, against the rival's dependency graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from _interleave import compare
from _networks import TRACED, network

import fastprune as fp

MACS = {"resnet50": 4_089_184_256}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.benchmark(timer=time.process_time)
def bench_trace(name: str, benchmark: Any, gate: Callable[..., None]) -> None:
    tp = pytest.importorskip("torch_pruning")
    model, example = network(name)

    graph = fp.trace(model, example)
    assert graph.cost().macs == MACS.get(name, graph.cost().macs)
    assert graph.cost().params == sum(p.numel() for p in model.parameters())

    def ours() -> object:
        return fp.trace(model, example).groups

    def rival() -> object:
        return tp.DependencyGraph().build_dependency(model, example)

    found = compare(benchmark, ours, rival, rounds=15, calls=5)
    gate(f"trace/{name}", found, rival="torch-pruning", input=list(example.shape))
