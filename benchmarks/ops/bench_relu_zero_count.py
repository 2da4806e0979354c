"""ReLU that counts its zeros, against ReLU alone; both allocate what they return."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import relu_zero_count

SHAPE = (16, 64, 56, 56)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def activation(shape: tuple[int, ...], dtype: torch.dtype, inside: bool, device: Any) -> Tensor:
    x = torch.randn(shape, device=device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if inside else x


def assert_right(x: Tensor) -> None:
    counter = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
    assert torch.equal(relu_zero_count(x, counter), torch.relu(x))
    assert torch.equal(counter, (x <= 0).sum((0, 2, 3)))


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def bench_large_map(benchmark: Any, gate: Callable[..., None], dtype: str, layout: str) -> None:
    x = activation(SHAPE, DTYPES[dtype], layout == "channels_last", "cpu")
    counter = torch.zeros(SHAPE[1], dtype=torch.int64)
    assert_right(x)
    # Many rounds: ours waits for memory, which neighbours use too, and torch's half precision for
    # its own arithmetic.
    found = compare(
        benchmark, lambda: relu_zero_count(x, counter), lambda: torch.relu(x), rounds=60, calls=5
    )
    gate(
        f"ops/relu_zero_count/{dtype}-{layout}",
        found,
        at_most=True,
        rival="torch.relu(x)",
        bytes=2 * x.numel() * x.element_size(),
        shape=list(SHAPE),
        dtype=dtype,
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    "shape",
    [(128, 64, 112, 112), (128, 256, 56, 56), (256, 1024, 14, 14), (256, 2048, 7, 7)],
    ids=lambda shape: f"{shape[2]}x{shape[3]}",
)
def bench_resnet50_gpu(
    gpu: torch.device, gate: Callable[..., None], shape: tuple[int, ...], dtype: str, layout: str
) -> None:
    nbytes = 2 * torch.Size(shape).numel() * DTYPES[dtype].itemsize

    def make() -> tuple[Tensor, Tensor]:
        x = activation(shape, DTYPES[dtype], layout == "channels_last", gpu)
        return x, torch.zeros(shape[1], dtype=torch.int64, device=gpu)

    inputs = rotated(make, nbytes)
    assert_right(inputs[0][0])
    found = compare_gpu(lambda one: relu_zero_count(*one), lambda one: torch.relu(one[0]), inputs)
    gate(
        f"gpu/relu_zero_count/{shape[2]}x{shape[3]}-{dtype}-{layout}",
        found,
        at_most=True,
        rival="torch.relu(x)",
        bytes=nbytes,
        shape=list(shape),
        dtype=dtype,
        device="cuda",
    )
