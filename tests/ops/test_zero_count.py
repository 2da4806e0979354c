"""zero_count: what the conformance cases do not say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastprune.ops import use_backend, zero_count

TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def test_a_counter_is_made_where_none_is_given() -> None:
    x = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[-0.0, 0.0], [0.0, 4.0]]])
    assert torch.equal(zero_count(x), torch.tensor([3, 1]))


def test_calls_add_up() -> None:
    counter = torch.zeros(3, dtype=torch.int64)
    x = torch.zeros(2, 3, 4, 4)
    assert zero_count(x, counter=counter) is counter
    zero_count(x, counter=counter)
    assert counter.tolist() == [64] * 3


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("inside", [False, True])
def test_only_zeros_are_zeros(dtype: torch.dtype, inside: bool) -> None:
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    numbers = [0.0, -0.0, least, -least, float("nan"), float("inf"), -float("inf"), info.tiny]
    x = torch.tensor(numbers, dtype=dtype).repeat(2, 5, 4, 25)
    assert (x == 0).sum() == 2 * 5 * 4 * 25 * 2
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    for backend in ("cpp", "numba", "reference"):
        with use_backend(backend):
            assert zero_count(x).tolist() == [2 * 4 * 25 * 2] * 5


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(9, 37, 56, 43), (1, 1, 1000, 999), (700, 600, 1, 1)])
def test_threads_change_nothing(shape: tuple[int, ...], dtype: torch.dtype, inside: bool) -> None:
    x = (torch.rand(shape) < 0.5).to(dtype)
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    alone = zero_count(x)
    torch.set_num_threads(5)
    assert torch.equal(zero_count(x), alone)
    assert torch.equal(alone, (x == 0).sum((0, 2, 3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_many_positions_do_not_overflow_narrow_counters(dtype: torch.dtype) -> None:
    x = torch.zeros(70_000 * 40, 3, dtype=dtype)
    for backend in ("cpp", "numba"):
        with use_backend(backend):
            assert zero_count(x).tolist() == [len(x)] * 3
            assert zero_count(x.t().contiguous()[None]).tolist() == [len(x)] * 3


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_lower_vector_levels(level: str) -> None:
    """What other processors run, where this one has more; the level is chosen once a process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "zero_count"]
    command.append(str(Path(__file__).with_name("test_conformance.py")) + "::test_values")
    environment = {**os.environ, "FASTPRUNE_SIMD": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_gradients_and_inference_mode_are_no_matter() -> None:
    x = torch.zeros(2, 3, 4, requires_grad=True)
    assert zero_count(x).tolist() == [8] * 3
    with torch.inference_mode():
        assert zero_count(x * 2).tolist() == [8] * 3


def test_compiled_counter_in_place() -> None:
    counter = torch.zeros(3, dtype=torch.int64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        zero_count(x, counter=counter)
        return x + 1

    step(torch.zeros(2, 3, 4))
    step(torch.zeros(2, 3, 4))
    assert counter.tolist() == [16] * 3


def test_explain() -> None:
    x = torch.zeros(2, 3, 4, 4)
    assert zero_count.explain(x).backend == "cpp"
    strided = zero_count.explain(x[:, :, ::2])
    assert strided.backend == "reference"
    assert "neither contiguous nor channels_last" in str(strided)


def test_errors() -> None:
    x = torch.zeros(2, 3, 4)
    for wrong, error, words in (
        ((torch.zeros(2, 3, dtype=torch.int32), None), TypeError, "floating dtype, got torch.int"),
        ((torch.zeros(3), None), ValueError, r"\[N, C, \.\.\.\], got shape \[3\]"),
        ((x, torch.zeros(3)), TypeError, "counter: expected int64, got torch.float32"),
        ((x, torch.zeros(4, dtype=torch.int64)), ValueError, r"expected shape \[3\].*got \[4\]"),
        ((x, torch.zeros(6, dtype=torch.int64)[::2]), ValueError, "expected contiguous"),
        ((x, torch.zeros(3, dtype=torch.int64, device="meta")), ValueError, "expected device cpu"),
    ):
        with pytest.raises(error, match=words):
            zero_count(wrong[0], counter=wrong[1])


SHAPES = [
    ((256, 64, 112, 112), True),
    ((256, 64, 112, 112), False),
    ((256, 2048, 7, 7), True),
    ((256, 2048, 7, 7), False),
    ((3, 37, 7, 7), True),
    ((5, 37), False),
    ((1, 1, 1, 1), True),
    # More than 2^31 elements, and than 65535 programs in a column of tiles.
    ((4096, 256, 56, 56), True),
    ((2_000_000, 3, 61, 59), False),
    ((1, 1, 70_000, 70_000), True),
]


@pytest.mark.parametrize(("shape", "outside"), SHAPES)
@pytest.mark.parametrize(("word", "pack"), [(4, 1), (4, 2), (2, 1), (8, 1)])
def test_tiles_cover_every_word_once(
    shape: tuple[int, ...], outside: bool, word: int, pack: int
) -> None:
    """The arithmetic of launches, for tensors that no memory holds as well."""
    triton = pytest.importorskip("triton")
    from fastprune.kernels.triton._zeros import tiles

    size = torch.Size(shape).numel()
    if size % pack:
        pytest.skip("odd tensors are not taken in pairs")
    plan = tiles(shape, outside, word, pack)
    along, down = plan.grid
    assert plan.total == size // pack
    assert along == triton.cdiv(plan.length, plan.width)
    rows = triton.cdiv(plan.total, plan.length)
    assert (down - 1) * plan.steps * plan.rows < rows <= down * plan.steps * plan.rows
    assert along < 2**31
    assert down <= 65535
    # Rows begin on 16 bytes, and repeat the channels: a position keeps its channel.
    assert plan.length * word % 16 == 0
    assert plan.length * pack % (plan.channels * plan.inner) == 0
    # Halves of a counter of 32 bits do not run over.
    assert plan.steps * plan.rows < 65536
    if plan.segments:
        start = (along - 1) * plan.width * pack
        for first in (0, start, plan.width * pack):
            last = first + plan.width * pack - 1
            assert last // plan.inner - first // plan.inner < plan.segments
