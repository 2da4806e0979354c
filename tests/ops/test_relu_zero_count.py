"""relu_zero_count: what the conformance cases do not say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastprune.ops import relu_zero_count, use_backend


def counter_of(channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.int64)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("inside", [False, True])
def test_as_torch_bit_by_bit(dtype: torch.dtype, inside: bool, backend: str) -> None:
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    nan, inf = float("nan"), float("inf")
    numbers = [0.0, -0.0, least, -least, nan, -nan, inf, -inf, info.max, info.min, 1.0, -1.0]
    x = torch.tensor(numbers, dtype=dtype).repeat(2, 5, 4, 25)
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    counter = counter_of(5)
    with use_backend(backend):
        y = relu_zero_count(x, counter)
    assert y.stride() == x.stride()
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(nan=7.0), torch.relu(x).nan_to_num(nan=7.0))
    assert counter.tolist() == [2 * 4 * 25 * 6] * 5


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(9, 37, 96, 83), (16, 64, 57, 56), (2, 3, 1100, 999)])
def test_large_outputs_and_threads(
    shape: tuple[int, ...], dtype: torch.dtype, inside: bool
) -> None:
    """Of more than 8 MiB, which are stored past the caches."""
    x = torch.randn(shape).to(dtype).repeat(2, 1, 1, 1)
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    for threads in (1, 5):
        torch.set_num_threads(threads)
        counter = counter_of(shape[1])
        assert torch.equal(relu_zero_count(x, counter), torch.relu(x))
        assert torch.equal(counter, (x <= 0).sum((0, 2, 3)))


def test_calls_add_up() -> None:
    counter = counter_of(3)
    for _ in range(3):
        relu_zero_count(-torch.ones(2, 3, 4), counter)
    assert counter.tolist() == [24] * 3


@pytest.mark.parametrize("inside", [False, True])
def test_gradients(inside: bool) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    counter = counter_of(3)
    assert torch.autograd.gradcheck(lambda x: relu_zero_count(x, counter), (x,))
    assert torch.autograd.gradgradcheck(lambda x: relu_zero_count(x, counter), (x,))


def test_gradients_are_those_of_relu() -> None:
    x = torch.tensor([[[-1.0, 0.0, -0.0, 2.0, float("nan")]]], requires_grad=True)
    relu_zero_count(x, counter_of(1)).sum().backward()
    mine, x.grad = x.grad, None
    torch.relu(x).sum().backward()
    assert mine is not None
    assert torch.equal(mine, x.grad)


def test_without_gradients() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    counter = counter_of(3)
    with torch.no_grad():
        assert not relu_zero_count(x, counter).requires_grad
    with torch.inference_mode():
        assert relu_zero_count(x * 1, counter).is_inference()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_with_its_backward(backend: str) -> None:
    def step(x: Tensor, counter: Tensor) -> Tensor:
        return (relu_zero_count(2 * x, counter) * 3).sum()

    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    eager, compiled = counter_of(3), counter_of(3)
    step(x, eager).backward()
    expected, x.grad = x.grad, None
    torch._dynamo.reset()
    whole = torch.compile(step, fullgraph=True, backend=backend)
    for _ in range(2):
        x.grad = None
        whole(x, compiled).backward()
    assert expected is not None
    assert torch.equal(x.grad, expected)
    assert torch.equal(compiled, 2 * eager)


def test_explain() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    counter = counter_of(3)
    assert relu_zero_count.explain(x, counter).backend == "cpp"
    assert relu_zero_count.explain(x[:, :, ::2], counter).backend == "reference"
    assert counter.tolist() == [0] * 3


def test_errors() -> None:
    x = torch.zeros(2, 3, 4)
    for wrong, counter, error, words in (
        (x.int(), counter_of(3), TypeError, "floating dtype, got torch.int32"),
        (x[0, 0], counter_of(3), ValueError, r"\[N, C, \.\.\.\], got shape \[4\]"),
        (x, torch.zeros(3), TypeError, "counter: expected int64, got torch.float32"),
        (x, counter_of(4), ValueError, r"expected shape \[3\].*got \[4\]"),
        (x, counter_of(3).to("meta"), ValueError, "expected device cpu"),
    ):
        with pytest.raises(error, match=words):
            relu_zero_count(wrong, counter)
