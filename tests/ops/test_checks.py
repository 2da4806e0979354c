"""What is no tensor, or one where a list belongs, is named: no AttributeError from within."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

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
    with pytest.raises(ValueError, match="expected two tensors, got the same for both"):
        Moments(torch.zeros((), dtype=torch.int64), both, both)
