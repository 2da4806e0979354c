"""Zeros of ResNet's activations by channel, against torch's own ways and a copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import zero_count

SHAPE = (16, 64, 56, 56)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def activation(shape: tuple[int, ...], dtype: torch.dtype, inside: bool, device: Any) -> Tensor:
    """What ReLU leaves: half of it zeros."""
    x = torch.randn(shape, device=device).relu_().to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if inside else x


def summed(x: Tensor) -> Tensor:
    return (x == 0).sum((0, 2, 3))


@pytest.fixture(scope="module")
def compiled() -> Callable[[Tensor], Tensor]:
    whole: Callable[[Tensor], Tensor] = torch.compile(summed, fullgraph=True)
    return whole


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(
    ("rival", "dtype", "layout"),
    [
        ("sum", "fp32", "contiguous"),
        ("sum", "fp32", "channels_last"),
        ("sum", "bf16", "contiguous"),
        ("compile", "fp32", "contiguous"),
        ("compile", "bf16", "channels_last"),
        ("copy", "fp32", "contiguous"),
        ("copy", "fp32", "channels_last"),
        ("copy", "fp16", "contiguous"),
        ("copy", "fp16", "channels_last"),
    ],
)
def bench_large_map(
    benchmark: Any,
    gate: Callable[..., None],
    compiled: Callable[[Tensor], Tensor],
    rival: str,
    dtype: str,
    layout: str,
) -> None:
    x = activation(SHAPE, DTYPES[dtype], layout == "channels_last", "cpu")
    counter, y = torch.zeros(SHAPE[1], dtype=torch.int64), torch.empty_like(x)
    assert torch.equal(zero_count(x), summed(x))
    ways: dict[str, tuple[str, Callable[[], object]]] = {
        "sum": ("(x == 0).sum", lambda: summed(x)),
        "compile": ("torch.compile of it", lambda: compiled(x)),
        "copy": ("y.copy_(x)", lambda: y.copy_(x)),
    }
    label, other = ways[rival]
    found = compare(benchmark, lambda: zero_count(x, counter=counter), other, rounds=60, calls=5)
    gate(
        f"ops/zero_count/{rival}-{dtype}-{layout}",
        found,
        rival=label,
        bytes=x.numel() * x.element_size(),
        shape=list(SHAPE),
        dtype=dtype,
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "shape",
    [(128, 64, 112, 112), (128, 256, 56, 56), (256, 1024, 14, 14), (256, 2048, 7, 7)],
    ids=lambda shape: f"{shape[2]}x{shape[3]}",
)
def bench_resnet50_gpu(
    gpu: torch.device,
    gate_fraction: Callable[..., None],
    shape: tuple[int, ...],
    dtype: str,
    layout: str,
) -> None:
    nbytes = torch.Size(shape).numel() * 2

    def make() -> tuple[Tensor, Tensor]:
        x = activation(shape, DTYPES[dtype], layout == "channels_last", gpu)
        return x, torch.zeros(shape[1], dtype=torch.int64, device=gpu)

    inputs = rotated(make, nbytes)
    assert torch.equal(zero_count(inputs[0][0]), summed(inputs[0][0]))
    found = compare_gpu(
        lambda one: zero_count(one[0], counter=one[1]), lambda one: summed(one[0]), inputs
    )
    gate_fraction(
        f"gpu/zero_count/{shape[2]}x{shape[3]}-{dtype}-{layout}",
        found.ours.best,
        nbytes,
        "read",
        shape=list(shape),
        dtype=dtype,
        device="cuda",
    )
