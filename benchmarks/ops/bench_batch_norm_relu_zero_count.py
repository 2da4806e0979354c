"""Batch norm, ReLU and the count in one pass, against batch norm, ReLU in place and the count."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import batch_norm_relu_zero_count

SHAPE = (16, 64, 56, 56)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RIVAL = "F.batch_norm(x, ...).relu_()"


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype, inside: bool, device: Any
) -> tuple[Tensor, ...]:
    """x, mean, var, weight, bias and a counter."""
    x = torch.randn(shape, device=device).to(dtype)
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, weight, bias = (torch.randn(shape[1], device=device) for _ in range(3))
    var = torch.rand(shape[1], device=device) + 0.5
    return x, mean, var, weight, bias, torch.zeros(shape[1], dtype=torch.int64, device=device)


def parts(x: Tensor, *norm: Tensor) -> Tensor:
    """Without the count: what it would cost is not even asked for."""
    return F.batch_norm(x, *norm[:4]).relu_()


def assert_right(given: tuple[Tensor, ...]) -> None:
    x, *norm, counter = given
    y = batch_norm_relu_zero_count(*given)
    exact = torch.relu(F.batch_norm(x.double(), *(t.double() for t in norm)))
    allowed = 2 * (parts(x, *norm).double() - exact).abs().max()
    assert (y.double() - exact).abs().max() <= allowed
    assert torch.equal(counter, (y == 0).sum((0, 2, 3)))


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def bench_large_map(benchmark: Any, gate: Callable[..., None], dtype: str, layout: str) -> None:
    given = arguments(SHAPE, DTYPES[dtype], layout == "channels_last", "cpu")
    assert_right(given)
    found = compare(
        benchmark,
        lambda: batch_norm_relu_zero_count(*given),
        lambda: parts(*given),
        rounds=60,
        calls=5,
    )
    gate(
        f"ops/batch_norm_relu_zero_count/{dtype}-{layout}",
        found,
        rival=RIVAL,
        bytes=2 * given[0].numel() * given[0].element_size(),
        shape=list(SHAPE),
        dtype=dtype,
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "shape", [(128, 256, 56, 56), (256, 2048, 7, 7)], ids=lambda shape: f"{shape[2]}x{shape[3]}"
)
def bench_resnet50_gpu(
    gpu: torch.device,
    gate: Callable[..., None],
    gate_fraction: Callable[..., None],
    shape: tuple[int, ...],
    dtype: str,
    layout: str,
) -> None:
    nbytes = 4 * torch.Size(shape).numel()
    inputs = rotated(
        lambda: arguments(shape, DTYPES[dtype], layout == "channels_last", gpu), nbytes
    )
    assert_right(inputs[0])
    found = compare_gpu(
        lambda given: batch_norm_relu_zero_count(*given), lambda given: parts(*given), inputs
    )
    name = f"gpu/batch_norm_relu_zero_count/{shape[2]}x{shape[3]}-{dtype}-{layout}"
    facts = {"shape": list(shape), "dtype": dtype, "device": "cuda"}
    gate_fraction(f"{name}-copy", found.ours.best, nbytes, "copy", **facts)
    gate(name, found, rival=RIVAL, bytes=nbytes, **facts)
