"""ReLU and the zeros of its output by channel in one read and one write, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant
from fastprune.kernels.triton._zeros import add_by_channel, flat_bits, tiles

__all__ = ["relu_zero_count", "variants"]

# Bits of -inf as a signed integer: numbers below zero and -0.0 are up to it, NaN is above.
NEGATIVE = {
    torch.float32: -0x00800000,
    torch.float16: -0x0400,
    torch.bfloat16: -0x0080,
    torch.float64: -0x0010000000000000,
}

# Half as much as where nothing is written: as many registers hold what goes out.
TILE_BYTES = 8192


@triton.jit
def relu_zero_count_tiles(
    x_ptr,
    y_ptr,
    counter_ptr,
    total,
    length,
    channels,
    inner,
    steps,
    NEGATIVE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """A program takes some tiles below one another, of floating numbers as integers."""
    start = tl.program_id(0).to(tl.int64) * WIDTH
    position = start + tl.arange(0, WIDTH)
    row = tl.program_id(1).to(tl.int64) * steps * ROWS + tl.arange(0, ROWS)
    inside = (position < length)[None, :]
    zeros = tl.zeros([ROWS, WIDTH], tl.int32)
    for step in range(0, steps):
        at = (row + step * ROWS)[:, None] * length + position[None, :]
        mask = inside & (at < total)
        x = tl.load(x_ptr + at, mask=mask, other=1)
        y = tl.where(x > NEGATIVE, x, 0)
        tl.store(y_ptr + at, y, mask=mask)
        zeros += (y == 0).to(tl.int32)
    found = tl.sum(zeros, axis=0)
    add_by_channel(counter_ptr, found, position, start, length, channels, inner, SEGMENTS)


def relu_zero_count(x: Tensor, counter: Tensor) -> Tensor:
    """ReLU of a dense ``x`` ``[N, C, ...]``; adds its zeros to ``counter`` int64 ``[C]``."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    plan = tiles(tuple(x.shape), x.is_contiguous(), x.element_size(), 1, TILE_BYTES)
    with torch.cuda.device_of(x):
        relu_zero_count_tiles[plan.grid](
            flat_bits(x),
            flat_bits(y),
            counter,
            plan.total,
            plan.length,
            plan.channels,
            plan.inner,
            plan.steps,
            NEGATIVE=NEGATIVE[x.dtype],
            WIDTH=plan.width,
            ROWS=plan.rows,
            SEGMENTS=plan.segments,
        )
    return y


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    found = []
    for label, dtype, integer in (
        ("fp32", torch.float32, "i32"),
        ("fp16", torch.float16, "i16"),
        ("bf16", torch.bfloat16, "i16"),
    ):
        for name, shape, outside in (
            ("7x7", (64, 2048, 7, 7), True),
            ("56x56", (64, 256, 56, 56), True),
            ("channels_last", (64, 256, 56, 56), False),
        ):
            plan = tiles(shape, outside, dtype.itemsize, 1, TILE_BYTES)
            pointers = {"x_ptr": f"*{integer}", "y_ptr": f"*{integer}", "counter_ptr": "*i64"}
            integers = dict.fromkeys(("total", "length", "channels", "inner", "steps"), "i32")
            constants = {
                "NEGATIVE": NEGATIVE[dtype],
                "WIDTH": plan.width,
                "ROWS": plan.rows,
                "SEGMENTS": plan.segments,
            }
            constexprs = dict.fromkeys(constants, "constexpr")
            found.append(
                Variant(
                    f"{name}-{label}",
                    relu_zero_count_tiles,
                    {**pointers, **integers, **constexprs},
                    constants,
                    aligned=(*pointers, "total", "length"),
                )
            )
    return tuple(found)
