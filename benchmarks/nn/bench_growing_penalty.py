"""What the growing penalty adds to a training step of ResNet-20, all weights under a mask."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _interleave import Comparison, Side, compare
from _training import BATCH, our_steps
from torch import nn

from fastprune import models
from fastprune.nn import GrowingPenalty

NAME, LAYERS = "resnet20_cifar", 20


def penalty_of(model: nn.Module) -> GrowingPenalty:
    """Three quarters of the weights of each layer are penalised, and the others held at zero."""
    weights = {name: w for name, w in model.named_parameters() if w.ndim > 1}
    assert len(weights) == LAYERS
    kept = {name: torch.rand(weight.shape) < 0.75 for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight[~kept[name].to(weight.device)] = 0
    return GrowingPenalty(
        weights,
        penalised=kept,
        kept=kept,
        schedule="exp_custom_exponents",
        granularity=1.0,
        limit=1.0,
        steps=100_000,
    )


def facts(model: nn.Module) -> dict[str, Any]:
    weights = sum(w.numel() for w in model.parameters() if w.ndim > 1)
    return {"batch": BATCH, "shape": [LAYERS, weights], "dtype": "float32"}


@pytest.mark.benchmark(timer=time.process_time)
def bench_share_of_a_step(benchmark: Any, gate: Callable[..., None]) -> None:
    """Calls alone, each after a whole step, which leaves caches as training does."""
    step = our_steps(NAME, "cpu")
    model = models.build(NAME).to(memory_format=torch.channels_last)
    penalty = penalty_of(model)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    found = compare(benchmark, penalty, step, rounds=12)
    gate("nn/growing_penalty/step", found, rival="the whole step", at_most=True, **facts(model))


@pytest.mark.gpu
def bench_captured_step_on_gpu(gpu: torch.device, gate: Callable[..., None]) -> None:
    """Wall time of captured steps with it, over those without: chunks of 40, then the device."""
    sides = [our_steps(NAME, "cuda", capture=True, hook=hook) for hook in (penalty_of, None)]
    times: list[list[float]] = [[], []]
    for measured in range(9):
        for side, taken in zip(sides, times, strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(40):
                side()
            torch.cuda.synchronize()
            # The first chunk warms up and records.
            if measured:
                taken.append((time.perf_counter() - start) / 40)
    found = Comparison(*(Side(tuple(taken)) for taken in times))
    gate(
        "gpu/growing_penalty/step",
        found,
        rival="the step without it",
        at_most=True,
        **facts(models.build(NAME)),
    )
