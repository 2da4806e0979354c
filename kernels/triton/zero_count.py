"""Zeros by channel in one read, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant

__all__ = ["variants", "zero_count"]


@triton.jit
def zero_count_channels_outside(x_ptr, counter_ptr, outer, channels, inner, BLOCK: tl.constexpr):
    """A program counts one channel of one image."""
    row = tl.program_id(0).to(tl.int64)
    zeros = tl.zeros([BLOCK], tl.int32)
    for start in range(0, inner, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * inner + at, mask=at < inner, other=1.0)
        zeros += (x == 0).to(tl.int32)
    tl.atomic_add(counter_ptr + row % channels, tl.sum(zeros).to(tl.int64))


@triton.jit
def zero_count_channels_inside(
    x_ptr, counter_ptr, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """A program counts a block of channels over a block of positions."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    at = row[:, None] * channels + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    zeros = tl.sum((x == 0).to(tl.int32), axis=0)
    tl.atomic_add(counter_ptr + channel, zeros.to(tl.int64), mask=channel < channels)


def zero_count(x: Tensor, counter: Tensor) -> None:
    """Adds the zeros of a dense ``x`` ``[N, C, ...]`` to ``counter`` int64 ``[C]``."""
    if x.numel() == 0:
        return
    outer, channels = x.shape[0], x.shape[1]
    inner = x.numel() // (outer * channels)
    with torch.cuda.device_of(x):
        if x.is_contiguous():
            block = min(1024, triton.next_power_of_2(inner))
            zero_count_channels_outside[(outer * channels,)](
                x, counter, outer, channels, inner, BLOCK=block
            )
            return
        rows = outer * inner
        grid = (triton.cdiv(rows, 64), triton.cdiv(channels, 64))
        zero_count_channels_inside[grid](x, counter, rows, channels, ROWS=64, CHANNELS=64)


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    outside = {"outer": "i32", "channels": "i32", "inner": "i32", "BLOCK": "constexpr"}
    return tuple(
        Variant(
            f"channels_outside-{dtype}",
            zero_count_channels_outside,
            {"x_ptr": f"*{dtype}", "counter_ptr": "*i64", **outside},
            {"BLOCK": 1024},
            aligned=("x_ptr", "counter_ptr", "inner"),
        )
        for dtype in ("fp32", "fp16", "bf16")
    )
