"""Zeros by channel in one read, on a GPU."""

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

__all__ = ["variants", "zero_count"]


@triton.jit(do_not_specialize=["steps"])
def zero_count_tiles(
    x_ptr,
    counter_ptr,
    total,
    length,
    channels,
    inner,
    steps,
    MAGNITUDE: tl.constexpr,
    PACK: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """A program counts some tiles below one another; a word holds one element, or two of 16 bits.

    Zero is all bits but the sign: integers tell it for every floating type, denormals included.
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
            words = tl.load(x_ptr + at, mask=mask, other=0x00010001).to(tl.uint32, bitcast=True)
            # Each half carries into its own highest bit unless it is zero; two instructions and a
            # half an element, where one at a time takes five and falls behind the memory.
            nonzero = ((words & 0x7FFF7FFF) + 0x7FFF7FFF) >> 15
            zeros += ((nonzero & 0x00010001) ^ 0x00010001).to(tl.int32)
        else:
            words = tl.load(x_ptr + at, mask=mask, other=1)
            zeros += ((words & MAGNITUDE) == 0).to(tl.int32)
    found = tl.sum(zeros, axis=0)
    add_words_by_channel(counter_ptr, found, lane, start, length, channels, inner, PACK, SEGMENTS)


def zero_count(x: Tensor, counter: Tensor) -> None:
    """Adds the zeros of a dense ``x`` ``[N, C, ...]`` to ``counter`` int64 ``[C]``."""
    if x.numel() == 0:
        return
    pack = 2 if in_pairs(x) else 1
    words = flat_words(x, pack)
    size = words.element_size()
    plan = tiles(tuple(x.shape), x.is_contiguous(), size, pack)
    with torch.cuda.device_of(x):
        zero_count_tiles[plan.grid](
            words,
            counter,
            plan.total,
            plan.length,
            plan.channels,
            plan.inner,
            plan.steps,
            MAGNITUDE=2 ** (8 * size - 1) - 1,
            PACK=pack,
            WIDTH=plan.width,
            ROWS=plan.rows,
            SEGMENTS=plan.segments,
        )


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    found = []
    for dtype, word, size, pack in (("fp32", "i32", 4, 1), ("16bit", "i32", 4, 2)):
        for name, shape, outside in (
            ("7x7", (64, 2048, 7, 7), True),
            ("56x56", (64, 256, 56, 56), True),
            ("channels_last", (64, 256, 56, 56), False),
        ):
            plan = tiles(shape, outside, size, pack)
            integers = dict.fromkeys(("total", "length", "channels", "inner", "steps"), "i32")
            constants = {
                "MAGNITUDE": 2 ** (8 * size - 1) - 1,
                "PACK": pack,
                "WIDTH": plan.width,
                "ROWS": plan.rows,
                "SEGMENTS": plan.segments,
            }
            constexprs = dict.fromkeys(constants, "constexpr")
            found.append(
                Variant(
                    f"{name}-{dtype}",
                    zero_count_tiles,
                    {"x_ptr": f"*{word}", "counter_ptr": "*i64", **integers, **constexprs},
                    constants,
                    aligned=("x_ptr", "counter_ptr", "total", "length"),
                )
            )
    return tuple(found)
