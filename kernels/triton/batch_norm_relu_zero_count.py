"""Batch norm of inference, ReLU and the zeros of the output by channel in one pass, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant
from fastprune.kernels.triton._zeros import add_by_channel, stretches, tiles

__all__ = ["batch_norm_relu_zero_count", "variants"]

# Elements of a tile, 16 a thread: with 32 of 16 bits, float32 beside them takes 125 registers.
TILE = 2048


@triton.jit(do_not_specialize=["steps"])
def batch_norm_relu_zero_count_tiles(
    x_ptr,
    y_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    counter_ptr,
    eps,
    total,
    length,
    channels,
    inner,
    steps,
    INTEGER: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """A program takes some tiles below one another; what scales a position stays in registers.

    Computed in float32. ``weight_ptr`` and ``bias_ptr`` are not read without ``WEIGHTED`` and
    ``BIASED``.
    """
    start = tl.program_id(0).to(tl.int64) * WIDTH
    lane = tl.arange(0, WIDTH)
    position = start + lane
    within = position < length
    first, later = stretches(lane, start, inner, SEGMENTS)
    channel = (first + later) % channels
    mean = tl.load(mean_ptr + channel, mask=within, other=0.0).to(tl.float32)
    var = tl.load(var_ptr + channel, mask=within, other=1.0).to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(var + eps)
    shift = tl.zeros([WIDTH], tl.float32)
    if WEIGHTED:
        scale *= tl.load(weight_ptr + channel, mask=within, other=0.0).to(tl.float32)
    if BIASED:
        shift = tl.load(bias_ptr + channel, mask=within, other=0.0).to(tl.float32)
    row = tl.program_id(1).to(tl.int64) * steps * ROWS + tl.arange(0, ROWS)
    zeros = tl.zeros([ROWS, WIDTH], tl.int32)
    for step in range(0, steps):
        at = (row + step * ROWS)[:, None] * length + position[None, :]
        mask = within[None, :] & (at < total)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        # Exact where x is the mean; NaN is not below zero.
        y = (x - mean[None, :]) * scale[None, :] + shift[None, :]
        y = tl.where(y < 0, 0.0, y).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + at, y, mask=mask)
        bits = y.to(INTEGER, bitcast=True)
        zeros += (mask & ((bits & MAGNITUDE) == 0)).to(tl.int32)
    found = tl.sum(zeros, axis=0)
    add_by_channel(counter_ptr, found, lane, start, length, channels, inner, SEGMENTS)


def batch_norm_relu_zero_count(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    counter: Tensor,
    eps: float,
) -> Tensor:
    """ReLU of the batch norm of a dense ``x``; adds its zeros to ``counter`` int64 ``[C]``."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    plan = tiles(tuple(x.shape), x.is_contiguous(), x.element_size(), 1, TILE * x.element_size())
    size = 8 * x.element_size()
    with torch.cuda.device_of(x):
        batch_norm_relu_zero_count_tiles[plan.grid](
            x,
            y,
            running_mean,
            running_var,
            running_mean if weight is None else weight,
            running_mean if bias is None else bias,
            counter,
            eps,
            plan.total,
            plan.length,
            plan.channels,
            plan.inner,
            plan.steps,
            INTEGER=tl.int16 if size == 16 else tl.int32,
            MAGNITUDE=2 ** (size - 1) - 1,
            WEIGHTED=weight is not None,
            BIASED=bias is not None,
            WIDTH=plan.width,
            ROWS=plan.rows,
            SEGMENTS=plan.segments,
        )
    return y


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    found = []
    for dtype, size in (("fp32", 32), ("fp16", 16), ("bf16", 16)):
        for name, shape, outside in (
            ("7x7", (64, 2048, 7, 7), True),
            ("56x56", (64, 256, 56, 56), True),
            ("channels_last", (64, 256, 56, 56), False),
        ):
            plan = tiles(shape, outside, size // 8, 1, TILE * size // 8)
            large = dict.fromkeys(("x_ptr", "y_ptr"), f"*{dtype}")
            small = dict.fromkeys(("mean_ptr", "var_ptr", "weight_ptr", "bias_ptr"), "*fp32")
            integers = dict.fromkeys(("total", "length", "channels", "inner", "steps"), "i32")
            constants = {
                "INTEGER": tl.int16 if size == 16 else tl.int32,
                "MAGNITUDE": 2 ** (size - 1) - 1,
                "WEIGHTED": True,
                "BIASED": True,
                "WIDTH": plan.width,
                "ROWS": plan.rows,
                "SEGMENTS": plan.segments,
            }
            constexprs = dict.fromkeys(constants, "constexpr")
            found.append(
                Variant(
                    f"{name}-{dtype}",
                    batch_norm_relu_zero_count_tiles,
                    {
                        **large,
                        **small,
                        "counter_ptr": "*i64",
                        "eps": "fp32",
                        **integers,
                        **constexprs,
                    },
                    constants,
                    aligned=(*large, *small, "counter_ptr", "total", "length"),
                )
            )
    return tuple(found)
