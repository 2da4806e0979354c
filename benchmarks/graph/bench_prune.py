"""Network to pruned network at half the MACs, against the rivals' own recipes for twice fewer."""

from __future__ import annotations

import copy
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
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


def fastnas(prune: Any, model: nn.Module, example: Tensor) -> nn.Module:
    """Model Optimizer's search with a score that costs nothing: what it takes itself."""

    def score(candidate: nn.Module) -> float:
        # It looks for the best within the budget, so a score has to fall with every channel.
        layers = [m for m in candidate.modules() if isinstance(m, nn.Conv2d)]
        return float(sum(layer.out_channels for layer in layers))

    config = {
        "data_loader": [(example, torch.zeros(len(example), dtype=torch.int64))],
        "collect_func": lambda batch: batch[0],
        "max_iter_data_loader": 1,
        "score_func": score,
        "verbose": False,
    }
    pruned: nn.Module = prune.prune(
        model,
        mode="fastnas",
        constraints={"flops": f"{TARGET:.0%}"},
        dummy_input=example,
        config=config,
    )[0]
    return pruned


@pytest.mark.slow
@pytest.mark.benchmark(timer=time.process_time)
def bench_fastnas(benchmark: Any, gate: Callable[..., None]) -> None:
    """Both in widths of multiples of 32, which it has by default."""
    rivals = pytest.importorskip("modelopt.torch.prune")
    version = importlib.metadata.version("nvidia-modelopt")
    model, example = network("resnet50")

    def ours() -> nn.Module:
        pruned: nn.Module = fp.prune(
            model, example, criterion="l1", budget={"macs": TARGET}, round_to=32
        ).model
        return pruned

    full = counted_macs(model, example)
    reached = counted_macs(ours(), example) / full
    rival_reached = counted_macs(fastnas(rivals, copy.deepcopy(model), example), example) / full
    assert reached <= TARGET
    assert rival_reached <= TARGET

    found = compare(
        benchmark,
        ours,
        lambda victim: fastnas(rivals, victim, example),
        rounds=5,
        rival_rounds=1,
        rival_setup=lambda: (copy.deepcopy(model),),
    )
    gate(
        "prune/resnet50-fastnas",
        found,
        rival=f"Model Optimizer {version}, FastNAS",
        input=list(example.shape),
        target=TARGET,
        reached=round(reached, 5),
        rival_reached=round(rival_reached, 5),
    )
