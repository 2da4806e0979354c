"""Network to pruned network at half the MACs, against the rival's own recipe for twice fewer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
from _interleave import compare
from _networks import classifier, network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastprune as fp

TARGET = 0.5


def counted_macs(model: nn.Module, example: Tensor) -> int:
    """A second opinion on the MACs, from a forward pass."""
    counter = FlopCounterMode(display=False)
    with counter:
        model(example)
    return int(counter.get_total_flops()) // 2


def rival_recipe(tp: Any, model: nn.Module, example: Tensor) -> nn.Module:
    """Prune a little and count, in steps of a 200th, until there are twice fewer MACs."""
    base, _ = tp.utils.count_ops_and_params(model, example)
    pruner = tp.pruner.MagnitudePruner(
        model,
        example,
        importance=tp.importance.MagnitudeImportance(p=1),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=200,
        ignored_layers=[classifier(model)],
    )
    macs = base
    while base / macs < 1 / TARGET and pruner.current_step < pruner.iterative_steps:
        pruner.step()
        macs, _ = tp.utils.count_ops_and_params(model, example)
    if base / macs < 1 / TARGET:
        raise RuntimeError(f"the rival stopped at {base / macs:.2f}×")
    return model


@pytest.mark.parametrize("name", ["resnet50", pytest.param("densenet121", marks=pytest.mark.slow)])
@pytest.mark.benchmark(timer=time.process_time)
def bench_prune(name: str, benchmark: Any, gate: Callable[..., None]) -> None:
    tp = pytest.importorskip("torch_pruning")
    model, example = network(name)

    def ours() -> nn.Module:
        pruned: nn.Module = fp.prune(model, example, criterion="l1", budget={"macs": TARGET}).model
        return pruned

    def rival(victim: nn.Module) -> nn.Module:
        return rival_recipe(tp, victim, example)

    reached = counted_macs(ours(), example) / counted_macs(model, example)
    assert 0.995 * TARGET <= reached <= TARGET

    found = compare(
        benchmark,
        ours,
        rival,
        rounds=5,
        # Half a minute, or seven, for one round.
        rival_rounds=1,
        rival_setup=lambda: (copy.deepcopy(model),),
    )
    gate(
        f"prune/{name}",
        found,
        rival="torch-pruning",
        input=list(example.shape),
        target=TARGET,
        reached=round(reached, 5),
    )
