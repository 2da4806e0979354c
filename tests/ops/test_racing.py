"""Counters and sums that many programs add to at once: only a GPU shows a missing atomic.

The reference runs on the CPU on the same data; whole numbers must come out equal every time.
Shapes are drawn, so that grids are small, large and ragged.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastprune.ops import batch_norm_relu_zero_count, registered, relu_zero_count, zero_count
from fastprune.testing.ops import OpCase, cases_of, check_implementation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CALLS = 40
STREAMS = 4


def shapes(seed: int) -> list[tuple[int, ...]]:
    """Grids of few and of many programs, channels that share one, odd sizes."""
    draw = random.Random(seed)
    found: list[tuple[int, ...]] = [(64, 3, 112, 112), (2048, 1, 33, 31), (1, 2049, 7, 7)]
    for _ in range(12):
        side = draw.choice([1, 7, 14, 28, 56, draw.randint(2, 61)])
        channels = draw.choice([1, 2, 3, 16, 64, draw.randint(1, 700)])
        images = max(1, min(256, 2_000_000 // (channels * side * side)))
        found.append((draw.randint(1, images), channels, side, side))
    return found


def activation(shape: tuple[int, ...], dtype: torch.dtype, last: bool, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cuda").relu().to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def count_alone(x: Tensor, counter: Tensor) -> None:
    zero_count(x, counter=counter)


def count_with_relu(x: Tensor, counter: Tensor) -> None:
    relu_zero_count(x, counter)


def count_with_batch_norm(x: Tensor, counter: Tensor) -> None:
    """An affine map that changes nothing, exactly."""
    zeros, ones = (make(x.shape[1], device=x.device) for make in (torch.zeros, torch.ones))
    batch_norm_relu_zero_count(x, zeros, ones, ones, zeros, counter, eps=0.0)


COUNTS = [count_alone, count_with_relu, count_with_batch_norm]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.__name__)
def test_counters_after_many_calls_are_the_sum(
    count: Callable[[Tensor, Tensor], None], dtype: torch.dtype, last: bool
) -> None:
    for seed, shape in enumerate(shapes(0)):
        x = activation(shape, dtype, last, seed)
        expected = (x == 0).sum((0, 2, 3)).cpu() * CALLS
        counter = torch.zeros(shape[1], dtype=torch.int64, device="cuda")
        for _ in range(CALLS):
            count(x, counter)
        assert torch.equal(counter.cpu(), expected), f"{shape}"


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.__name__)
def test_streams_that_share_a_counter_lose_nothing(
    count: Callable[[Tensor, Tensor], None],
) -> None:
    """The launches overlap: what one program adds must not overwrite another's."""
    shape = (8, 5, 14, 14)
    inputs = [activation(shape, torch.float16, False, seed) for seed in range(STREAMS)]
    expected = sum((x == 0).sum((0, 2, 3)) for x in inputs) * CALLS
    assert isinstance(expected, Tensor)
    counter = torch.zeros(shape[1], dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(STREAMS)]
    for _ in range(CALLS):
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                count(x, counter)
    torch.cuda.synchronize()

    assert torch.equal(counter, expected)


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.__name__)
def test_a_call_waits_for_what_its_stream_still_does(
    count: Callable[[Tensor, Tensor], None],
) -> None:
    """A launch on another stream than the current one would read before the fill is done."""
    x = torch.ones(64, 8, 32, 32, device="cuda")
    counter = torch.zeros(8, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.zero_()
        count(x, counter)
    stream.synchronize()

    assert counter.tolist() == [64 * 32 * 32] * 8


@pytest.mark.parametrize(
    ("op", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case.name}")
        for name in (registered() if torch.cuda.is_available() else ())
        for case in cases_of(name)
        if not case.large
    ],
)
def test_every_case_is_right_again_and_again(op: str, case: OpCase) -> None:
    """Right once in ten times is how a missing barrier looks."""
    for backend, missing in registered()[op].availability("cuda")[:-1]:
        if missing is None:
            for _ in range(10):
                check_implementation(op, case, backend, torch.device("cuda"))
