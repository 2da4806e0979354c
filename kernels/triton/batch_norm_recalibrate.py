"""Batch norm with the batch's own statistics, and their merge into a state, on a GPU.

Three launches: partial sums of chunks of every channel, their merge (float64, a few numbers a
channel), the normalisation. Nothing is added atomically: the same input gives the same bits. Where
a block of channels fits in registers, one launch does it all and reads the input once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from fastprune.kernels.triton._batch_norm_kernels import (
    measure_channels_inside,
    measure_channels_outside,
    merge_partials,
    normalise_channels_inside,
    normalise_channels_outside,
    whole_channels,
)
from fastprune.kernels.triton._variant import Variant

__all__ = ["batch_norm_recalibrate", "variants"]

# Programs of the launch that measures: a few waves on any GPU, few enough to merge quickly.
PROGRAMS = 1024
# Tiles that one of them sums: a few amortise its end; more would let cancellation grow.
CHUNK = (4, 64)
# Bytes of a tile: four 16-byte loads for each of 128 threads.
TILE = 8192
# Elements that a program keeps in registers where it does all by itself.
WHOLE = 8192


def _run(inner: int) -> int:
    """Positions of an image in a tile: many, but few lanes beyond the image's end."""
    size = 1024
    while size >= 2 * inner or (size > 16 and triton.cdiv(inner, size) * size > 1.34 * inner):
        size //= 2
    return size


def _tile_outside(inner: int, element_size: int) -> dict[str, int]:
    run = _run(inner)
    images = max(TILE // element_size // run, 1)
    return {"ALIGN": min(inner & -inner, 16), "IMAGES": images, "INNER": run}


def _tile_inside(channels: int, element_size: int) -> dict[str, int]:
    block = min(triton.next_power_of_2(channels), 128)
    return {"ROWS": TILE // element_size // block, "CHANNELS": block}


def _whole(rows: int, channels_last: bool, element_size: int) -> dict[str, int] | None:
    """The block of channels that one program takes whole, or None: they do not fit."""
    # 32 bytes: the least that is read of a row.
    channels = 32 // element_size if channels_last else 1
    padded = triton.next_power_of_2(rows)
    return {"ROWS": padded, "CHANNELS": channels} if padded * channels <= WHOLE else None


def _warps(elements: int) -> int:
    return 8 if elements > 2048 else 4


def batch_norm_recalibrate(
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
    """Normalises a dense ``x`` ``[N, C, ...]``; count int64, mean and m2 float64 are updated."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    outer, channels = x.shape[0], x.shape[1]
    rows = x.numel() // channels
    inner = rows // outer
    last = inner == 1 or not x.is_contiguous()
    with torch.cuda.device_of(x):
        if whole := _whole(rows, last, x.element_size()):
            # Rows of channels are images of one position.
            strides = (1, 0, 1, channels) if last else (inner, 1, inner, channels * inner)
            whole_channels[(triton.cdiv(channels, whole["CHANNELS"]),)](
                *(x, y, count, mean, m2, weight, bias, mask, channels, rows, *strides, eps),
                **whole,
                RELU=relu,
                num_warps=_warps(whole["ROWS"] * whole["CHANNELS"]),
            )
            # Not in the kernel: its programs all read it.
            count.add_(rows)
            return y
        measure: Any
        normalise: Any
        if last:
            tile = _tile_inside(channels, x.element_size())
            across, tiles = (
                triton.cdiv(channels, tile["CHANNELS"]),
                triton.cdiv(rows, tile["ROWS"]),
            )
            measure, sizes = measure_channels_inside, (rows, channels)
            normalise, lines, blocks = normalise_channels_inside, sizes, across * tiles
        else:
            tile = _tile_outside(inner, x.element_size())
            along = triton.cdiv(inner, tile["INNER"])
            across, tiles = channels, triton.cdiv(outer, tile["IMAGES"]) * along
            measure, sizes = measure_channels_outside, (outer, channels, inner)
            normalise, lines = normalise_channels_outside, (outer * channels, channels, inner)
            blocks = triton.cdiv(outer * channels, tile["IMAGES"]) * along
        chunk = min(max(triton.cdiv(across * tiles, PROGRAMS), CHUNK[0]), CHUNK[1])
        parts = triton.cdiv(tiles, chunk)
        partial = x.new_empty((3, channels, parts), dtype=torch.float32)
        values = x.new_empty(parts, dtype=torch.int64)
        affine = x.new_empty((3, channels), dtype=torch.float32)
        # One axis: a grid's others end at 65535.
        measure[(across * parts,)](x, partial, values, *sizes, parts, chunk, **tile, num_warps=4)
        block = min(triton.next_power_of_2(parts), 1024)
        merge_partials[(channels,)](
            *(partial, values, affine, count, mean, m2, weight, bias, mask, channels, parts, eps),
            PARTS=block,
            num_warps=4 if block > 128 else 1,
        )
        normalise[(blocks,)](x, y, affine, count, rows, *lines, **tile, RELU=relu, num_warps=4)
    return y


# Types of what is not like x, and of what is neither this nor a constant: int32.
TYPES = {
    "partial_ptr": "*fp32",
    "size_ptr": "*i64",
    "affine_ptr": "*fp32",
    "count_ptr": "*i64",
    "mean_ptr": "*fp64",
    "m2_ptr": "*fp64",
    "weight_ptr": "*fp32",
    "bias_ptr": "*fp32",
    "eps": "fp32",
}
ALIGNED = {"x_ptr", "y_ptr", *TYPES, "channels", "row_stride", "image_stride"} - {"eps"}


def _variant(
    name: str, kernel: Any, dtype: str, constants: dict[str, Any], *, wide: bool = True
) -> Variant:
    types = {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", **TYPES}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32")
        for argument in kernel.arg_names
    }
    aligned = tuple(n for n, kind in signature.items() if n in ALIGNED and kind != "constexpr")
    whole = kernel is whole_channels
    warps = _warps(constants["ROWS"] * constants["CHANNELS"]) if whole else 4
    return Variant(
        f"{name}-{dtype}", kernel, signature, constants, aligned, warps=warps, wide=wide
    )


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    none = {"mask_ptr": None}
    found = [_variant("merge", merge_partials, "fp32", {**none, "PARTS": 1024}, wide=False)]
    for dtype, size in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        inside, outside = _tile_inside(256, size), _tile_outside(56 * 56, size)
        relu = {"RELU": True}
        last, first = _whole(512, True, size), _whole(512, False, size)
        assert last is not None
        assert first is not None
        found += [
            _variant("measure-channels_last", measure_channels_inside, dtype, inside),
            _variant("measure-contiguous", measure_channels_outside, dtype, outside),
            _variant(
                "normalise-channels_last", normalise_channels_inside, dtype, {**inside, **relu}
            ),
            _variant(
                "normalise-contiguous", normalise_channels_outside, dtype, {**outside, **relu}
            ),
            _variant(
                "whole-channels_last",
                whole_channels,
                dtype,
                {**none, **last, **relu, "channel_stride": 1, "inner": 1},
            ),
            # Rows of 7×7 positions start anywhere.
            _variant(
                "whole-contiguous",
                whole_channels,
                dtype,
                {**none, **first, **relu, "row_stride": 1},
                wide=False,
            ),
        ]
    return tuple(found)
