"""Calls of zero_count."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import zero_count
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]

Arrange = Callable[[Tensor], Tensor]


def _activation(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    arrange: Arrange | None,
    device: torch.device,
    generator: torch.Generator,
) -> Tensor:
    """Normal numbers, half of them zero, with −0.0, NaN and infinities among them."""
    x = torch.randn(shape, generator=generator)
    x[torch.rand(shape, generator=generator) < 0.5] = 0.0
    for i, odd in enumerate((-0.0, float("nan"), float("inf"), 1e-40)):
        x.view(-1)[i::97] = odd
    x = x.to(device, dtype)
    return x if arrange is None else arrange(x)


def _make(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    arrange: Arrange | None,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    x = _activation(shape, dtype, arrange, device, generator)
    return x, torch.arange(x.shape[1], device=device)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _call(x: Tensor, counter: Tensor) -> Tensor:
    return zero_count(x, counter=counter)


def cases() -> list[OpCase]:
    found = []
    arrange: Arrange | None
    shape: tuple[int, ...]
    for label, dtype in (
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp64", torch.float64),
    ):
        for name, shape, arrange in (
            ("plain", (2, 5, 8, 8), None),
            ("channels_last", (2, 5, 8, 8), _last),
            ("7x7", (3, 17, 7, 7), None),
            ("7x7-channels_last", (3, 17, 7, 7), _last),
        ):
            call = _call if dtype == torch.float32 else None
            found.append(OpCase(f"{label}-{name}", partial(_make, shape, dtype, arrange), call))
    for name, shape, arrange in (
        ("empty", (0, 3, 4, 4), None),
        ("no-positions", (2, 3, 0, 4), None),
        ("one-channel", (2, 1, 5, 5), None),
        ("features", (7, 33), None),
        ("tokens-last", (2, 9, 12), lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)),
        ("volume", (2, 3, 3, 4, 5), None),
        ("strided", (2, 6, 8, 8), lambda x: x[:, ::2]),
        ("expanded", (2, 1, 1, 1), lambda x: x.expand(2, 4, 3, 3)),
        ("many-channels-last", (1, 300, 3, 3), _last),
    ):
        found.append(OpCase(name, partial(_make, shape, torch.float32, arrange)))
    return found
