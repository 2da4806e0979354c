"""Training steps, input included, against the usual script in plain PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _interleave import Comparison, Side, compare
from _training import BATCH, IMAGES, our_steps, plain_steps

from fastprune.processor import bf16_instructions

TABLE = ("resnet20_cifar", "resnet56_cifar", "resnet110_cifar", "vgg16_cifar", "densenet40_cifar")
RIVAL = "plain PyTorch, DataLoader"

bf16 = pytest.mark.skipif(
    not {"amx_bf16", "avx512_bf16"} & set(bf16_instructions()),
    reason="the processor has no bf16 instructions",
)


def _facts(found: Comparison) -> dict[str, Any]:
    """Seconds an epoch of CIFAR-10: a step's least time, times the batches."""
    batches = IMAGES / BATCH
    return {
        "batch": BATCH,
        "seconds_an_epoch": round(found.ours.best * batches, 1),
        "rival_seconds_an_epoch": round(found.rival.best * batches, 1),
    }


def _hold(name: str, rounds: int, benchmark: Any, gate: Callable[..., None], group: str) -> None:
    ours, rival = our_steps(name, "cpu"), plain_steps(name, "cpu")
    # The same weights, on other images.
    assert ours() == pytest.approx(rival(), rel=0.2)
    found = compare(benchmark, ours, rival, rounds=rounds)
    gate(f"training/{group}/{name}", found, rival=RIVAL, **_facts(found))


@bf16
@pytest.mark.benchmark(timer=time.process_time)
def bench_step(benchmark: Any, gate: Callable[..., None]) -> None:
    _hold("resnet56_cifar", 6, benchmark, gate, "step")


@bf16
@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.benchmark(timer=time.process_time)
def bench_epoch(name: str, benchmark: Any, gate: Callable[..., None]) -> None:
    _hold(name, 4, benchmark, gate, "epoch")


@pytest.mark.gpu
@pytest.mark.parametrize("name", TABLE)
def bench_step_on_gpu(name: str, gpu: torch.device, gate: Callable[..., None]) -> None:
    """Wall time, which for small networks is the host's: chunks of 40 steps, then the device."""
    sides = [our_steps(name, "cuda", capture=True), plain_steps(name, "cuda")]
    times: list[list[float]] = [[], []]
    for measured in range(6):
        for side, taken in zip(sides, times, strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(40):
                side()
            torch.cuda.synchronize()
            # The first chunk compiles, warms up and records.
            if measured:
                taken.append((time.perf_counter() - start) / 40)
    found = Comparison(*(Side(tuple(taken)) for taken in times))
    gate(f"gpu/training/{name}", found, rival=RIVAL, **_facts(found))
