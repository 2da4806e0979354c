"""Calls of channel_scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import ChannelScores, channel_scores_of
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]

Arrange = Callable[[Tensor], Tensor]


def _make(
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    arrange: Arrange | None,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    weights = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return (weights if arrange is None else [arrange(weight) for weight in weights],)


def _odd(weight: Tensor) -> Tensor:
    """With zeros of both signs, numbers whose squares overflow or vanish, infinities and NaN."""
    flat = weight.view(-1)
    for i, odd in enumerate((0.0, -0.0, 1e30, 1e-30, float("-inf"), float("nan"))):
        flat[7 * i] = odd
    return weight


def _last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _call(weights: list[Tensor]) -> list[ChannelScores]:
    return channel_scores_of(weights)


def cases() -> list[OpCase]:
    found = []
    arrange: Arrange | None
    shapes: tuple[tuple[int, ...], ...]
    several = ((70, 16, 3, 3), (5, 3, 7, 7), (9, 520), (4, 6, 5))
    for label, dtype in (
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp64", torch.float64),
    ):
        for name, shapes, arrange in (
            ("one", ((70, 10, 3, 3),), None),
            ("several", several, None),
            ("channels_last", ((70, 10, 3, 3), (6, 16, 3, 3)), _last),
        ):
            call = _call if dtype == torch.float32 else None
            found.append(OpCase(f"{label}-{name}", partial(_make, shapes, dtype, arrange), call))
    for name, shapes, arrange in (
        ("empty", ((0, 3, 2, 2), (3, 0), (2, 3, 0)), None),
        ("single", ((1, 1), (1, 1, 1, 1)), None),
        ("one-row", ((1, 300),), None),
        ("one-column", ((300, 1),), None),
        ("depthwise", ((130, 1, 3, 3),), None),
        ("long-rows", ((3, 240, 3, 3),), None),
        ("vectors", ((7,), (4,)), None),
        ("volume", ((5, 4, 2, 3, 2),), None),
        ("transposed", ((33, 12),), Tensor.t),
        ("strided", ((12, 8, 3, 3),), lambda w: w[::2, ::2]),
        ("unaligned", ((8, 16), (8, 8)), lambda w: w.view(-1)[1:-1][:56].view(7, 8)),
        ("odd-values", ((21, 10, 3, 3),), _odd),
    ):
        found.append(OpCase(name, partial(_make, shapes, torch.float32, arrange)))
    return found
