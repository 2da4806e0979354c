"""What is no tensor, or one where a list belongs, is named: no AttributeError from within."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from fastprune.errors import BackendError
from fastprune.ops import (
    GatherPlan,
    Moments,
    batch_norm_recalibrate,
    batch_norm_relu_zero_count,
    channel_scores,
    channel_scores_of,
    crop_generated_weights,
    gamma_penalty,
    gamma_proximal_,
    gamma_subgradient_,
    gather_channels,
    relu_zero_count,
    zero_count,
)
from fastprune.ops._extension import extension

ARRAY = np.ones((2, 3), np.float32)
X, VECTOR = torch.ones(2, 3), torch.ones(3)
COUNTER = torch.zeros(3, dtype=torch.int64)
PLAN = GatherPlan.of([(2, 3)], [{0: [1]}])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: zero_count(ARRAY), "x: expected a tensor, got ndarray"),
        (lambda: zero_count(X, counter=[0] * 3), "counter: expected a tensor, got list"),
        (lambda: relu_zero_count(ARRAY, COUNTER), "x: expected a tensor"),
        (
            lambda: batch_norm_relu_zero_count(X, VECTOR, VECTOR, 1.0, None, COUNTER),
            "weight: expected a tensor, got float",
        ),
        (
            lambda: batch_norm_recalibrate(ARRAY, Moments.zeros(3), None, None),
            "x: expected a tensor",
        ),
        (lambda: Moments(0, VECTOR, VECTOR), "count: expected a tensor, got int"),
        (lambda: channel_scores(ARRAY), "weight: expected a tensor"),
        (lambda: channel_scores_of([X, ARRAY]), r"weights\[1\]: expected a tensor"),
        (lambda: channel_scores_of(X), "weights: expected a list of tensors, got one tensor"),
        (lambda: gather_channels([ARRAY], PLAN), r"tensors\[0\]: expected a tensor"),
        (lambda: gather_channels(X[None], PLAN), "tensors: expected a list of tensors"),
        (lambda: gamma_subgradient_(X, X, 1.0), "scales: expected a list of tensors"),
        (lambda: gamma_subgradient_([X], X, 1.0), "gradients: expected a list of tensors"),
        (lambda: gamma_proximal_(X, 1.0), "scales: expected a list of tensors"),
        (lambda: gamma_penalty(X), "scales: expected a list of tensors"),
        (lambda: gamma_penalty([ARRAY]), r"scales\[0\]: expected a tensor"),
        (
            lambda: crop_generated_weights(
                X, X, None, None, None, shape=(1, 1, 1, 1), out_channels=[1], in_channels=[1]
            ),
            "fc2_weight: expected a tensor, got NoneType",
        ),
    ],
)
def test_what_is_no_tensor(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(TypeError, match=f"^{expected}"):
        call()


def test_moments_need_two_tensors() -> None:
    both = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected two tensors, got the same memory for both"):
        Moments(torch.zeros((), dtype=torch.int64), both, both)


MOMENTS = Moments.zeros(3)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: batch_norm_relu_zero_count(X, VECTOR, None, None, None, COUNTER),
            "running_var: expected a tensor, got NoneType",
        ),
        (
            lambda: batch_norm_relu_zero_count(X, None, VECTOR, None, None, COUNTER),
            "running_mean: expected a tensor, got NoneType",
        ),
        (lambda: batch_norm_recalibrate(X, None, None, None), "moments: expected Moments"),
        (
            lambda: batch_norm_recalibrate(X, MOMENTS, None, None, relu="a"),
            "relu: expected True or False, got str",
        ),
        (
            lambda: batch_norm_recalibrate(X, MOMENTS, None, None, eps=VECTOR),
            "eps: expected a number, got Tensor",
        ),
        (lambda: gather_channels([X], None), "plan: expected a GatherPlan, got NoneType"),
        (lambda: GatherPlan.of([(3,)], [[0]]), r"indices\[0\]: expected a mapping"),
        (lambda: GatherPlan.of(["a"], [{}]), r"shapes\[0\]: expected whole numbers, got str"),
        (lambda: Moments.of(X.to(torch.complex64)), "x: expected a floating dtype"),
        (lambda: MOMENTS.merge(None), "other: expected Moments, got NoneType"),
        (lambda: gamma_penalty(None), "scales: expected a list of tensors, got NoneType"),
        (
            lambda: gamma_subgradient_([VECTOR], [VECTOR], np.array([0.1])),
            "strength: expected a number, a list of numbers or a tensor, got ndarray",
        ),
        (
            lambda: crop_generated_weights(
                X,
                X,
                None,
                X[:, :2],
                None,
                shape=(2, 1, 1, 1),
                out_channels=[1.0, 1],
                in_channels=[1],
            ),
            r"out_channels\[0\]: expected a whole number, got float",
        ),
    ],
)
def test_what_is_of_another_type(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(TypeError, match=f"^{expected}"):
        call()


def test_values_out_of_range() -> None:
    with pytest.raises(ValueError, match="eps: expected 0 or more, got -1"):
        batch_norm_relu_zero_count(X, VECTOR, VECTOR, None, None, COUNTER, eps=-1.0)
    with pytest.raises(ValueError, match="positions with values, got a meta tensor"):
        GatherPlan.of([(3,)], [{0: torch.zeros(1, dtype=torch.int64, device="meta")}])
    both = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="got the same memory for both"):
        Moments(torch.zeros((), dtype=torch.int64), both, both[:])


def test_positions_that_are_made_on_demand() -> None:
    """Objects that are gone have left their ids to others."""

    class Lazy(Mapping[int, list[int]]):
        def __init__(self, first: int) -> None:
            self.first = first

        def __getitem__(self, dim: int) -> list[int]:
            return [self.first, self.first + 1]

        def __iter__(self) -> Iterator[int]:
            return iter([0])

        def __len__(self) -> int:
            return 1

    plan = GatherPlan.of([(8,)] * 4, [Lazy(0), Lazy(2), Lazy(4), Lazy(6)])
    found = gather_channels([torch.arange(8)] * 4, plan)
    assert [kept.tolist() for kept in found] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_an_unknown_vector_level_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTPRUNE_SIMD", "avx1024")
    with pytest.raises(BackendError, match="FASTPRUNE_SIMD: expected baseline, avx2, avx512 or"):
        extension()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: relu_zero_count(x, COUNTER.clone()),
        lambda x: batch_norm_relu_zero_count(x, VECTOR, VECTOR, None, None, COUNTER.clone()),
        lambda x: gamma_penalty([x]),
        lambda x: crop_generated_weights(
            x,
            torch.ones(2, 3),
            None,
            torch.ones(1, 2),
            None,
            shape=(1, 1, 1, 1),
            out_channels=[1, 1],
            in_channels=[1, 1],
        ),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_is_refused_rather_than_lost(
    call: Callable[[torch.Tensor], object], grad: bool
) -> None:
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.rand(2, 3), torch.ones(2, 3))
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            call(dual)
        call(torch.rand(2, 3))
