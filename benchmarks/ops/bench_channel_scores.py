"""Both norms of both sides of every weight of ResNet-50, against one norm by two reductions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import ChannelScores, channel_scores_of

RIVAL = "two separate abs().sum"


def resnet50(**kind: Any) -> list[Tensor]:
    """The 53 convolutions and the classifier, random."""
    model = torchvision.models.resnet50(weights=None)
    return [torch.randn(p.shape, **kind) for p in model.parameters() if p.ndim > 1]


def separate(weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Σ|w| alone, as loops over layers compute it."""
    found = []
    for weight in weights:
        rest = list(range(2, weight.ndim))
        found.append((weight.abs().sum([1, *rest]), weight.abs().sum([0, *rest])))
    return found


def size(weights: Sequence[Tensor]) -> int:
    return sum(w.numel() * w.element_size() for w in weights)


def assert_right(weights: Sequence[Tensor]) -> None:
    """Within float32's rounding of sums of 18,432 numbers."""
    scores: list[ChannelScores] = channel_scores_of(weights)
    for weight, found in zip(weights, scores, strict=True):
        wide = weight.double()
        for got, values, keep in (
            (found.out_abs, wide.abs(), 0),
            (found.out_square, wide.square(), 0),
            (found.in_abs, wide.abs(), 1),
            (found.in_square, wide.square(), 1),
        ):
            exact = values.movedim(keep, 0).flatten(1).sum(1)
            assert float(((got - exact) / exact).abs().max()) < 2e-6


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_resnet50(benchmark: Any, gate: Callable[..., None], dtype: torch.dtype) -> None:
    weights = resnet50(dtype=dtype)
    assert_right(weights)
    found = compare(
        benchmark, lambda: channel_scores_of(weights), lambda: separate(weights), rounds=8, calls=3
    )
    label = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    gate(
        f"ops/channel_scores/resnet50-{label}",
        found,
        rival=RIVAL,
        bytes=size(weights),
        shape="54 weights",
        dtype=label,
        device="cpu",
    )


@pytest.mark.gpu
def bench_resnet50_gpu(gpu: torch.device, gate: Callable[..., None]) -> None:
    """Launches are what counts here: 3 against 216."""
    first = resnet50(device=gpu)
    assert_right(first)
    inputs = [first, *rotated(lambda: resnet50(device=gpu), size(first))[1:]]
    found = compare_gpu(channel_scores_of, separate, inputs)
    gate(
        "gpu/channel_scores/resnet50",
        found,
        rival=RIVAL,
        bytes=size(first),
        shape="54 weights",
        dtype="fp32",
        device="cuda",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def bench_large_weight_gpu(
    gpu: torch.device,
    gate: Callable[..., None],
    gate_fraction: Callable[..., None],
    dtype: torch.dtype,
) -> None:
    shape = (16_384, 8_192)

    def make() -> list[Tensor]:
        return [torch.randn(shape, device=gpu, dtype=dtype)]

    inputs = rotated(make, size(make()))
    assert_right(inputs[0])
    found = compare_gpu(channel_scores_of, separate, inputs)
    label = {torch.float32: "fp32", torch.float16: "fp16"}[dtype]
    facts = {"shape": list(shape), "dtype": label, "device": "cuda"}
    name = f"gpu/channel_scores/large-{label}"
    nbytes = size(inputs[0])
    gate_fraction(f"{name}-read", found.ours.best, nbytes, "read", **facts)
    gate(name, found, rival=RIVAL, bytes=nbytes, **facts)
