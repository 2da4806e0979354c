"""batch_norm_relu_zero_count: what the conformance cases do not say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastprune.ops import batch_norm_relu_zero_count, use_backend


def counter_of(channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.int64)


def norm_of(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Mean, variance, weight and bias."""
    var = torch.rand(channels, dtype=dtype) + 0.5
    mean, weight, bias = (torch.randn(channels, dtype=dtype) for _ in range(3))
    return mean, var, weight, bias


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9, 37, 96, 83), (16, 64, 57, 56)])
def test_large_outputs_and_threads(
    shape: tuple[int, ...], dtype: torch.dtype, inside: bool
) -> None:
    """Of more than 8 MiB, which are stored past the caches."""
    x = torch.randn(shape).to(dtype).repeat(2, 1, 1, 1)
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    norm = norm_of(shape[1])
    expected = torch.relu(F.batch_norm(x.double(), *(t.double() for t in norm)))
    plain = torch.relu(F.batch_norm(x, *norm))
    allowed = 2 * (plain.double() - expected).abs().max()
    found = []
    for threads in (1, 5):
        torch.set_num_threads(threads)
        counter = counter_of(shape[1])
        y = batch_norm_relu_zero_count(x, *norm, counter)
        assert (y.double() - expected).abs().max() <= allowed
        assert torch.equal(counter, (y == 0).sum((0, 2, 3)))
        found.append(y)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zeros_are_counted_after_rounding(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.ones(2, 1, 3, 3, dtype=dtype)
    mean, var = torch.zeros(1), torch.ones(1)
    for share, zeros in ((0.4, 18), (0.6, 0)):
        weight = torch.full((1,), least * share, dtype=torch.float64).float()
        if dtype == torch.bfloat16:
            assert weight.item() > 0
        for backend in ("cpp", "reference"):
            counter = counter_of(1)
            with use_backend(backend):
                y = batch_norm_relu_zero_count(x, mean, var, weight, None, counter, eps=0.0)
            assert counter.tolist() == [int((y == 0).sum())] == [zeros]


def test_dead_channels_and_odd_numbers() -> None:
    """γ = β = 0 gives zeros, but not of what is infinite or no number."""
    x = torch.tensor([1.0, -1.0, float("nan"), float("inf"), 0.0]).repeat(2, 4).view(2, 1, 20)
    zero, one = torch.zeros(1), torch.ones(1)
    for backend in ("cpp", "reference"):
        counter = counter_of(1)
        with use_backend(backend):
            y = batch_norm_relu_zero_count(x, zero, one, zero, zero, counter)
        assert counter.tolist() == [24]
        assert int(y.isnan().sum()) == 16


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)])
def test_gradients(affine: tuple[bool, bool], inside: bool) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    if inside:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, var, weight, bias = norm_of(3, torch.float64)
    counter = counter_of(3)

    def call(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return batch_norm_relu_zero_count(x, mean, var, weight, bias, counter)

    inputs = (
        x.requires_grad_(),
        weight.requires_grad_() if affine[0] else None,
        bias.requires_grad_() if affine[1] else None,
    )
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_are_those_of_the_parts(dtype: torch.dtype, wanted: str) -> None:
    x = torch.randn(4, 3, 5, 5).to(dtype)
    mean, var, weight, bias = norm_of(3)
    leaf = {"x": x, "weight": weight, "bias": bias}[wanted].requires_grad_()
    grad = torch.randn(4, 3, 5, 5).to(dtype)
    batch_norm_relu_zero_count(x, mean, var, weight, bias, counter_of(3)).backward(grad)
    mine, leaf.grad = leaf.grad, None
    torch.relu(F.batch_norm(x, mean, var, weight, bias)).backward(grad)
    assert mine is not None
    assert leaf.grad is not None
    assert mine.dtype == leaf.grad.dtype
    torch.testing.assert_close(mine, leaf.grad)


def test_without_gradients() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    with torch.no_grad():
        assert not batch_norm_relu_zero_count(x, *norm_of(3), counter_of(3)).requires_grad
    with torch.inference_mode():
        assert batch_norm_relu_zero_count(x * 1, *norm_of(3), counter_of(3)).is_inference()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_with_its_backward(backend: str) -> None:
    mean, var, weight, bias = norm_of(3)
    leaves = [torch.randn(2, 3, 4, 4).requires_grad_(), weight, bias]
    for leaf in leaves:
        leaf.requires_grad_()

    def step(x: Tensor, counter: Tensor) -> Tensor:
        return (batch_norm_relu_zero_count(2 * x, mean, var, weight, bias, counter) * 3).sum()

    def grads(call: Any, counter: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(call(leaves[0], counter), leaves))

    eager, compiled = counter_of(3), counter_of(3)
    expected = grads(step, eager)
    torch._dynamo.reset()
    got = grads(torch.compile(step, fullgraph=True, backend=backend), compiled)
    torch.testing.assert_close(got, expected)
    assert torch.equal(compiled, eager)


def test_explain() -> None:
    x = torch.randn(2, 3, 4, 4)
    norm, counter = norm_of(3), counter_of(3)
    assert batch_norm_relu_zero_count.explain(x, *norm, counter).backend == "cpp"
    strided = batch_norm_relu_zero_count.explain(x[:, :, ::2], *norm, counter)
    assert strided.backend == "reference"
    assert counter.tolist() == [0] * 3


def test_errors() -> None:
    x, norm, counter = torch.zeros(2, 3, 4), norm_of(3), counter_of(3)
    mean, var, weight, bias = norm
    for arguments, error, words in (
        ((x.int(), *norm, counter), TypeError, "x: expected a floating dtype, got torch.int32"),
        ((x[0, 0], *norm, counter), ValueError, r"x: expected \[N, C, \.\.\.\]"),
        ((x, *norm, counter[:2]), ValueError, r"counter: expected shape \[3\]"),
        ((x, *norm_of(4), counter), ValueError, r"running_mean: expected shape \[3\].*got \[4\]"),
        ((x, mean, var.double(), weight, bias, counter), TypeError, "running_var: expected"),
        ((x.double(), *norm, counter), TypeError, "running_mean: expected torch.float64"),
        (
            (x.half(), mean.half(), var, weight, bias, counter),
            TypeError,
            "running_var: expected torch.float16, as running_mean has, got torch.float32",
        ),
        (
            (x.half(), *(t.double() for t in norm), counter),
            TypeError,
            "expected torch.float16 or torch.float32 beside x of torch.float16, got torch.float64",
        ),
        ((x, mean, var, weight, bias.to("meta"), counter), ValueError, "bias: expected device"),
        ((x, mean, var, weight.repeat(2)[::2], bias, counter), ValueError, "weight: expected con"),
    ):
        with pytest.raises(error, match=words):
            batch_norm_relu_zero_count(*arguments)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 3), (2, 0, 4), (2, 3, 0, 4)])
def test_backward_of_an_empty_batch(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    mean, bias = torch.zeros(shape[1]), torch.zeros(shape[1], requires_grad=True)
    variance, weight = torch.ones(shape[1]), torch.ones(shape[1], requires_grad=True)
    counter = torch.zeros(shape[1], dtype=torch.int64)
    batch_norm_relu_zero_count(x, mean, variance, weight, bias, counter).sum().backward()
    for tensor in (x, weight, bias):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()
