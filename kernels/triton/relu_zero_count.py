"""ReLU and the zeros of its output by channel in one read and one write, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant
from fastprune.kernels.triton._zeros import (
    add_words_by_channel,
    flat_words,
    in_pairs,
    tiles,
)

__all__ = ["relu_zero_count", "variants"]

# Bits of infinity without the sign: those of NaN are more.
INFINITY = {
    torch.float32: 0x7F800000,
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float64: 0x7FF0000000000000,
}

# Half as much as where nothing is written: there are two ways to keep busy.
TILE_BYTES = 8192


@triton.jit(do_not_specialize=["steps"])
def relu_zero_count_tiles(
    x_ptr,
    y_ptr,
    counter_ptr,
    total,
    length,
    channels,
    inner,
    steps,
    ABOVE: tl.constexpr,
    PACK: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """A program takes some tiles below one another; a word holds one element, or two of 16 bits.

    Floating numbers are taken as integers. One element alone is kept above ``ABOVE``, the signed
    bits of -inf: numbers below zero and -0.0 are up to it, NaN with a sign is above. Two halves
    are told by carries: ``ABOVE`` added to the rest makes the highest bit of each that is NaN.
    """
    start = tl.program_id(0).to(tl.int64) * WIDTH
    lane = tl.arange(0, WIDTH)
    position = start + lane
    row = tl.program_id(1).to(tl.int64) * steps * ROWS + tl.arange(0, ROWS)
    inside = (position < length)[None, :]
    zeros = tl.zeros([ROWS, WIDTH], tl.int32)
    for step in range(0, steps):
        at = (row + step * ROWS)[:, None] * length + position[None, :]
        mask = inside & (at < total)
        if PACK == 2:
            x = tl.load(x_ptr + at, mask=mask, other=0x00010001).to(tl.uint32, bitcast=True)
            nan = (x & 0x7FFF7FFF) + ABOVE
            # a ^ (a & b) is a & ~b, which Triton 3.6 cannot interpret for unsigned words.
            below = ((x ^ (x & nan)) >> 15) & 0x00010001
            y = x ^ (x & (below * 0xFFFF))
            nonzero = ((y & 0x7FFF7FFF) + 0x7FFF7FFF) >> 15
            zeros += ((nonzero & 0x00010001) ^ 0x00010001).to(tl.int32)
            tl.store(y_ptr + at, y.to(tl.int32, bitcast=True), mask=mask)
        else:
            x = tl.load(x_ptr + at, mask=mask, other=1)
            y = tl.where(x > ABOVE, x, 0)
            zeros += (y == 0).to(tl.int32)
            tl.store(y_ptr + at, y, mask=mask)
    found = tl.sum(zeros, axis=0)
    add_words_by_channel(counter_ptr, found, lane, start, length, channels, inner, PACK, SEGMENTS)


def above(dtype: torch.dtype, pack: int) -> int:
    """The constant ``ABOVE`` for words of ``pack`` elements."""
    if pack == 2:
        return (0x7FFF - INFINITY[dtype]) * 0x00010001
    return INFINITY[dtype] - (1 << (8 * dtype.itemsize - 1))


def relu_zero_count(x: Tensor, counter: Tensor) -> Tensor:
    """ReLU of a dense ``x`` ``[N, C, ...]``; adds its zeros to ``counter`` int64 ``[C]``."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    pack = 2 if in_pairs(x) and in_pairs(y) else 1
    words = flat_words(x, pack)
    plan = tiles(tuple(x.shape), x.is_contiguous(), words.element_size(), pack, TILE_BYTES)
    with torch.cuda.device_of(x):
        relu_zero_count_tiles[plan.grid](
            words,
            flat_words(y, pack),
            counter,
            plan.total,
            plan.length,
            plan.channels,
            plan.inner,
            plan.steps,
            ABOVE=above(x.dtype, pack),
            PACK=pack,
            WIDTH=plan.width,
            ROWS=plan.rows,
            SEGMENTS=plan.segments,
        )
    return y


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    found = []
    for label, dtype, pack in (
        ("fp32", torch.float32, 1),
        ("fp16", torch.float16, 2),
        ("bf16", torch.bfloat16, 2),
    ):
        for name, shape, outside in (
            ("7x7", (64, 2048, 7, 7), True),
            ("56x56", (64, 256, 56, 56), True),
            ("channels_last", (64, 256, 56, 56), False),
        ):
            plan = tiles(shape, outside, 4, pack, TILE_BYTES)
            pointers = {"x_ptr": "*i32", "y_ptr": "*i32", "counter_ptr": "*i64"}
            integers = dict.fromkeys(("total", "length", "channels", "inner", "steps"), "i32")
            constants = {
                "ABOVE": above(dtype, pack),
                "PACK": pack,
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
