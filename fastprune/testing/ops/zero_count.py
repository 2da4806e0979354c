"""Calls of zero_count."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import zero_count
from fastprune.testing.ops._activation import DTYPES, SHAPES, Arrange, activation, inside
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]


def _make(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    arrange: Arrange | None,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    x = activation(shape, dtype, arrange, device, generator)
    return x, torch.arange(x.shape[1], device=device)


def _call(x: Tensor, counter: Tensor) -> Tensor:
    return zero_count(x, counter=counter)


def cases() -> list[OpCase]:
    found = []
    maps: tuple[tuple[str, tuple[int, ...], Arrange | None], ...] = (
        ("plain", (2, 5, 8, 8), None),
        ("channels_last", (2, 5, 8, 8), inside),
        ("7x7", (3, 17, 7, 7), None),
        ("7x7-channels_last", (3, 17, 7, 7), inside),
        ("14x14", (2, 32, 14, 14), None),
        ("14x14-channels_last", (2, 32, 14, 14), inside),
    )
    for label, dtype in DTYPES.items():
        for name, shape, arrange in maps:
            call = _call if dtype == torch.float32 else None
            found.append(OpCase(f"{label}-{name}", partial(_make, shape, dtype, arrange), call))
    for name, (shape, arrange) in SHAPES.items():
        found.append(OpCase(name, partial(_make, shape, torch.float32, arrange)))
        if name.endswith("inside") or name == "offset":
            found.append(OpCase(f"bf16-{name}", partial(_make, shape, torch.bfloat16, arrange)))
    return found
