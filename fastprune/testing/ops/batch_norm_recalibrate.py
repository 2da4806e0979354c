"""Calls of batch_norm_recalibrate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import Moments, batch_norm_recalibrate
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]

Arrange = Callable[[Tensor], Tensor]


def _make(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    arrange: Arrange | None,
    change: Callable[[Tensor], Tensor] | None,
    affine: bool,
    mask: bool,
    relu: bool,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    """A batch after 100 values a channel that came before."""
    x = torch.randn(shape, generator=generator)
    if change is not None:
        x = change(x)
    x = x.to(device, dtype)
    if arrange is not None:
        x = arrange(x)
    mean, m2, weight, bias = torch.randn(4, x.shape[1], generator=generator).to(device)
    kept = torch.arange(x.shape[1], device=device) % 3 != 1 if mask else None
    return (
        x,
        torch.tensor(100, device=device),
        mean.double(),
        m2.abs().double() * 100,
        weight if affine else None,
        bias if affine else None,
        kept,
        1e-5,
        relu,
    )


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _far(x: Tensor) -> Tensor:
    return 1e3 + 1e-2 * x


def _drifting(x: Tensor) -> Tensor:
    """Every image around another mean, the first far from the rest."""
    drift = torch.arange(x.shape[0]).float().sub(x.shape[0]).clamp(max=-1)
    drift[0] = 1e3
    return x + drift.view(-1, *[1] * (x.ndim - 1))


def _odd(x: Tensor) -> Tensor:
    """NaN at the start of a channel and at the end of another; one constant, one zero."""
    x[0, 0].view(-1)[0] = float("nan")
    x[-1, 1].view(-1)[-1] = float("nan")
    x[:, 2] = 0.1
    x[:, 3] = 0
    return x


def _call(
    x: Tensor,
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    return batch_norm_recalibrate(
        x, Moments(count, mean, m2), weight, bias, eps=eps, mask=mask, relu=relu
    )


def cases() -> list[OpCase]:
    found = []

    def add(
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        arrange: Arrange | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
        *,
        affine: bool = True,
        mask: bool = False,
        relu: bool = True,
        call: Callable[..., Any] | None = None,
        large: bool = False,
    ) -> None:
        make = partial(_make, shape, dtype, arrange, change, affine, mask, relu)
        # The order of adding up hundreds of numbers, pairwise or one by one, moves a sum's error
        # by a factor of ten; in float64 the reference is its own yardstick.
        slack = 32.0 if dtype == torch.float64 else 16.0
        found.append(OpCase(name, make, call, large=large, slack=slack))

    for label, dtype in (
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp64", torch.float64),
    ):
        add(f"{label}-plain", (2, 5, 8, 8), dtype, call=_call)
        add(f"{label}-channels_last", (2, 5, 8, 8), dtype, _last, call=_call)
        add(f"{label}-7x7", (3, 17, 7, 7), dtype, mask=True)
        add(f"{label}-7x7-channels_last", (3, 17, 7, 7), dtype, _last, mask=True)
        add(f"{label}-large", (3, 2, 61, 57), dtype, relu=False)
        add(f"{label}-large-channels_last", (3, 5, 37, 33), dtype, _last, relu=False)
        add(f"{label}-many-channels_last", (2, 72, 24, 20), dtype, _last)
    for name, arrange in (("", None), ("-channels_last", _last)):
        for label, change in (("far", _far), ("drifting", _drifting), ("odd", _odd)):
            add(f"{label}{name}", (4, 6, 10, 10), torch.float32, arrange, change, relu=False)
            add(f"{label}-large{name}", (4, 6, 48, 50), torch.float32, arrange, change)
        add(f"one-image{name}", (1, 5, 70, 70), torch.float32, arrange)
        add(f"no-affine{name}", (2, 5, 6, 7), torch.float32, arrange, affine=False, mask=True)
        add(f"one-channel{name}", (2, 1, 5, 5), torch.float32, arrange)
    add("empty", (0, 3, 4, 4))
    add("no-positions", (2, 3, 0, 4))
    add("no-channels", (2, 0, 3, 4))
    add("two-values", (2, 3))
    add("features", (7, 33))
    add("many-features", (1100, 9))
    add("sequence", (3, 5, 11))
    add(
        "tokens-last", (2, 9, 12), arrange=lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)
    )
    add("volume", (2, 3, 3, 4, 5))
    add("strided", (2, 6, 8, 8), arrange=lambda x: x[:, ::2])
    add("batch-of-resnet", (256, 64, 56, 56), torch.float16, _last, large=True)
    return found
