"""Calls of batch_norm_relu_zero_count."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import batch_norm_relu_zero_count
from fastprune.testing.ops._activation import DTYPES, SHAPES, Arrange, activation, inside
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]


def _make(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    arrange: Arrange | None,
    statistics: torch.dtype,
    affine: tuple[bool, bool],
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    x = activation(shape, dtype, arrange, device, generator)
    channels = x.shape[1]

    def vector(least: float, most: float) -> Tensor:
        drawn = torch.rand(channels, generator=generator) * (most - least) + least
        return drawn.to(device, statistics)

    mean, var, weight, bias = vector(-1, 1), vector(0.1, 2), vector(-1, 1), vector(-1, 1)
    # A channel that pruning has emptied: every output is the bias, here zero.
    weight[:1], bias[:1] = 0, 0
    return (
        x,
        mean,
        var,
        weight if affine[0] else None,
        bias if affine[1] else None,
        torch.arange(channels, device=device),
        1e-5,
    )


def _call(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    counter: Tensor,
    eps: float,
) -> Tensor:
    return batch_norm_relu_zero_count(x, mean, var, weight, bias, counter, eps=eps)


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
    both = (True, True)
    for label, dtype in DTYPES.items():
        single = torch.float64 if dtype == torch.float64 else torch.float32
        for name, shape, arrange in maps:
            make = partial(_make, shape, dtype, arrange, single, both)
            call = _call if dtype == torch.float32 else None
            found.append(OpCase(f"{label}-{name}", make, call))
        if dtype.itemsize == 2:
            make = partial(_make, (2, 5, 8, 8), dtype, None, dtype, both)
            found.append(OpCase(f"{label}-statistics", make))
    for name, affine in (
        ("no-weight", (False, True)),
        ("no-bias", (True, False)),
        ("no-affine", (False, False)),
    ):
        make = partial(_make, (2, 5, 8, 8), torch.float32, None, torch.float32, affine)
        found.append(OpCase(name, make, _call))
        make = partial(_make, (2, 5, 8, 8), torch.float16, inside, torch.float32, affine)
        found.append(OpCase(f"fp16-{name}-inside", make))
    for name, (shape, arrange) in SHAPES.items():
        make = partial(_make, shape, torch.float32, arrange, torch.float32, both)
        found.append(OpCase(name, make))
        if name.endswith("inside") or name == "offset":
            make = partial(_make, shape, torch.bfloat16, arrange, torch.float32, both)
            found.append(OpCase(f"bf16-{name}", make))
    return found
