"""The kernels of batch_norm_recalibrate; batch_norm_recalibrate.py launches them.

A chunk's sums are of deviations from the mean of its first tile, so what cancels in Σd² − (Σd)²/n
is at most as many times M2 as the chunk has tiles, however badly centred the data are.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "measure_channels_inside",
    "measure_channels_outside",
    "merge_partials",
    "normalise_channels_inside",
    "normalise_channels_outside",
    "whole_channels",
]


@triton.jit
def _positions(unit, units_inside, outer, inner, IMAGES: tl.constexpr, INNER: tl.constexpr):
    """Images and positions of one tile, and how many of both are inside."""
    n = (unit // units_inside) * IMAGES
    i = (unit % units_inside) * INNER
    return n, i, tl.minimum(outer - n, IMAGES) * tl.minimum(inner - i, INNER)


@triton.jit(do_not_specialize=["outer", "inner", "parts", "chunk"])
def measure_channels_outside(
    x_ptr,
    partial_ptr,
    size_ptr,
    outer,
    channels,
    inner,
    parts,
    chunk,
    ALIGN: tl.constexpr,
    IMAGES: tl.constexpr,
    INNER: tl.constexpr,
):
    """A program sums ``chunk`` tiles of one channel of ``[N, C, inner]``.

    ``partial_ptr`` float32 ``[3, C, chunks]``: shift, Σd, Σd²; ``size_ptr`` int64 ``[chunks]``.
    """
    inner = tl.multiple_of(inner.to(tl.int64), ALIGN)
    channel = tl.program_id(0).to(tl.int64) % channels
    part = tl.program_id(0).to(tl.int64) // channels
    units_inside = tl.cdiv(inner, INNER)
    units = tl.cdiv(outer, IMAGES) * units_inside
    first = part * chunk
    last = tl.minimum(first + chunk, units)
    image = tl.arange(0, IMAGES)[:, None]
    place = tl.arange(0, INNER)[None, :]

    n, i, here = _positions(first, units_inside, outer, inner, IMAGES, INNER)
    inside = (n + image < outer) & (i + place < inner)
    at = ((n + image) * channels + channel) * inner + (i + place)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(x_ptr + (n * channels + channel) * inner + i).to(tl.float32)
    shift = start + tl.sum(tl.where(inside, x - start, 0.0)) / here.to(tl.float32)
    d = tl.where(inside, x - shift, 0.0)
    sums = d
    squares = d * d
    size = here
    for unit in range(first + 1, last):
        n, i, here = _positions(unit, units_inside, outer, inner, IMAGES, INNER)
        inside = (n + image < outer) & (i + place < inner)
        at = ((n + image) * channels + channel) * inner + (i + place)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.where(inside, x - shift, 0.0)
        sums += d
        squares += d * d
        size += here
    plane = parts.to(tl.int64) * channels
    out = partial_ptr + channel * parts + part
    tl.store(out, shift)
    tl.store(out + plane, tl.sum(sums))
    tl.store(out + 2 * plane, tl.sum(squares))
    if channel == 0:
        tl.store(size_ptr + part, size)


@triton.jit(do_not_specialize=["parts", "chunk"])
def measure_channels_inside(
    x_ptr,
    partial_ptr,
    size_ptr,
    rows,
    channels,
    parts,
    chunk,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A program sums ``chunk`` tiles of a block of channels of ``[rows, C]``; as above."""
    across = tl.cdiv(channels, CHANNELS)
    part = tl.program_id(0).to(tl.int64) // across
    block = tl.program_id(0).to(tl.int64) % across
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    column = channel < channels
    first = part * chunk * ROWS
    last = tl.minimum(first + chunk * ROWS, rows.to(tl.int64))
    row = first + tl.arange(0, ROWS)

    inside = (row < last)[:, None] & column[None, :]
    at = row[:, None] * channels + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(x_ptr + first * channels + channel, mask=column, other=0.0).to(tl.float32)
    here = tl.minimum(last - first, ROWS).to(tl.float32)
    shift = start + tl.sum(tl.where(inside, x - start[None, :], 0.0), axis=0) / here
    d = tl.where(inside, x - shift[None, :], 0.0)
    sums = d
    squares = d * d
    for begin in range(first + ROWS, last, ROWS):
        row = begin + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & column[None, :]
        at = row[:, None] * channels + channel[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.where(inside, x - shift[None, :], 0.0)
        sums += d
        squares += d * d
    plane = parts.to(tl.int64) * channels
    out = partial_ptr + channel * parts + part
    tl.store(out, shift, mask=column)
    tl.store(out + plane, tl.sum(sums, axis=0), mask=column)
    tl.store(out + 2 * plane, tl.sum(squares, axis=0), mask=column)
    if block == 0:
        tl.store(size_ptr + part, last - first)


@triton.jit
def _finish(
    channel,
    column,
    n,
    batch_mean,
    batch_m2,
    count,
    mean_ptr,
    m2_ptr,
    weight_ptr,
    bias_ptr,
    mask_ptr,
    eps,
):
    """Merges the batch into the state; gives shift, scale and offset, float32."""
    mean = tl.load(mean_ptr + channel, mask=column, other=0.0)
    m2 = tl.load(m2_ptr + channel, mask=column, other=0.0)
    share = n / (count + n)
    delta = batch_mean - mean
    tl.store(mean_ptr + channel, mean + delta * share, mask=column)
    tl.store(m2_ptr + channel, m2 + batch_m2 + delta * delta * count * share, mask=column)
    # float32 from here: a square root in float64 is slow on most GPUs, and the result is rounded.
    scale = 1.0 / tl.sqrt((batch_m2 / n + eps).to(tl.float32))
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + channel, mask=column, other=0.0).to(tl.float32)
    # The mean as float32 can hold it; what rounding took from it goes into the offset.
    shift = batch_mean.to(tl.float32)
    offset = (shift.to(tl.float64) - batch_mean).to(tl.float32) * scale
    if bias_ptr is not None:
        offset += tl.load(bias_ptr + channel, mask=column, other=0.0).to(tl.float32)
    if mask_ptr is not None:
        kept = tl.load(mask_ptr + channel, mask=column, other=0.0).to(tl.float32)
        scale *= kept
        offset *= kept
    return shift, scale, offset


@triton.jit(do_not_specialize=["parts"])
def merge_partials(
    partial_ptr,
    size_ptr,
    affine_ptr,
    count_ptr,
    mean_ptr,
    m2_ptr,
    weight_ptr,
    bias_ptr,
    mask_ptr,
    channels,
    parts,
    eps,
    PARTS: tl.constexpr,
):
    """A program merges one channel over all chunks, always in the same order.

    ``affine_ptr`` float32 ``[3, C]``: shift, scale and offset of the normalisation.
    """
    channel = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    begin = partial_ptr + tl.program_id(0).to(tl.int64) * parts
    plane = channels * parts.to(tl.int64)
    totals = tl.zeros([PARTS], tl.float64)
    sizes = tl.zeros([PARTS], tl.float64)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = part < parts
        size = tl.load(size_ptr + part, mask=inside, other=0).to(tl.float64)
        shift = tl.load(begin + part, mask=inside, other=0.0).to(tl.float64)
        sums = tl.load(begin + plane + part, mask=inside, other=0.0).to(tl.float64)
        totals += shift * size + sums
        sizes += size
    n = tl.sum(sizes)
    mean = tl.sum(totals) / n
    squares = tl.zeros([PARTS], tl.float64)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = part < parts
        size = tl.load(size_ptr + part, mask=inside, other=1).to(tl.float64)
        shift = tl.load(begin + part, mask=inside, other=0.0).to(tl.float64)
        sums = tl.load(begin + plane + part, mask=inside, other=0.0).to(tl.float64)
        within = tl.load(begin + 2 * plane + part, mask=inside, other=0.0).to(tl.float64)
        off = sums / size
        within -= sums * off
        delta = shift + off - mean
        # Rounding may leave less than nothing; NaN stays.
        within = tl.where(within < 0, 0.0, within) + delta * delta * size
        squares += tl.where(inside, within, 0.0)
    count = tl.load(count_ptr).to(tl.float64)
    shift, scale, offset = _finish(
        channel,
        channel < channels,
        n,
        mean + tl.zeros([1], tl.float64),
        tl.sum(squares) + tl.zeros([1], tl.float64),
        count,
        mean_ptr,
        m2_ptr,
        weight_ptr,
        bias_ptr,
        mask_ptr,
        eps,
    )
    tl.store(affine_ptr + channel, shift)
    tl.store(affine_ptr + channels + channel, scale)
    tl.store(affine_ptr + 2 * channels + channel, offset)


@triton.jit
def _normalised(x, shift, scale, offset, RELU: tl.constexpr):
    y = (x.to(tl.float32) - shift) * scale + offset
    # Not a maximum: NaN stays NaN.
    return tl.where(y < 0, 0.0, y) if RELU else y


@triton.jit(do_not_specialize=["inner"])
def normalise_channels_outside(
    x_ptr,
    y_ptr,
    affine_ptr,
    count_ptr,
    values,
    images,
    channels,
    inner,
    ALIGN: tl.constexpr,
    IMAGES: tl.constexpr,
    INNER: tl.constexpr,
    RELU: tl.constexpr,
):
    """A program normalises a tile of ``[N·C, inner]``, the last tiles first.

    They are what the launch before has left in the L2. The counter is written here, where every
    program of the merge has read it.
    """
    inner = tl.multiple_of(inner.to(tl.int64), ALIGN)
    unit = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    if unit == 0:
        tl.store(count_ptr, tl.load(count_ptr) + values)
    across = tl.cdiv(inner, INNER)
    row = (unit // across) * IMAGES + tl.arange(0, IMAGES)
    place = (unit % across) * INNER + tl.arange(0, INNER)
    there = row < images
    channel = row % channels
    shift = tl.load(affine_ptr + channel, mask=there, other=0.0)[:, None]
    scale = tl.load(affine_ptr + channels + channel, mask=there, other=0.0)[:, None]
    offset = tl.load(affine_ptr + 2 * channels + channel, mask=there, other=0.0)[:, None]
    at = row[:, None] * inner + place[None, :]
    inside = there[:, None] & (place < inner)[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    y = _normalised(x, shift, scale, offset, RELU)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def normalise_channels_inside(
    x_ptr,
    y_ptr,
    affine_ptr,
    count_ptr,
    values,
    rows,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
):
    """A program normalises a tile of ``[rows, C]``, the last tiles first; as above."""
    unit = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    if unit == 0:
        tl.store(count_ptr, tl.load(count_ptr) + values)
    across = tl.cdiv(channels, CHANNELS)
    row = (unit // across) * ROWS + tl.arange(0, ROWS)
    channel = (unit % across) * CHANNELS + tl.arange(0, CHANNELS)
    column = channel < channels
    shift = tl.load(affine_ptr + channel, mask=column, other=0.0)[None, :]
    scale = tl.load(affine_ptr + channels + channel, mask=column, other=0.0)[None, :]
    offset = tl.load(affine_ptr + 2 * channels + channel, mask=column, other=0.0)[None, :]
    at = row[:, None] * channels + channel[None, :]
    inside = (row < rows)[:, None] & column[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    y = _normalised(x, shift, scale, offset, RELU)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def whole_channels(
    x_ptr,
    y_ptr,
    count_ptr,
    mean_ptr,
    m2_ptr,
    weight_ptr,
    bias_ptr,
    mask_ptr,
    channels,
    rows,
    inner,
    row_stride,
    channel_stride,
    image_stride,
    eps,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
):
    """A program keeps all positions of a block of channels in registers; any dense layout."""
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    column = channel < channels
    row = tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & column[None, :]
    along = (row // inner).to(tl.int64) * image_stride + (row % inner).to(tl.int64) * row_stride
    at = along[:, None] + channel[None, :] * channel_stride
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    begin = x_ptr + channel * channel_stride
    start = tl.load(begin, mask=column, other=0.0).to(tl.float32)
    n = rows.to(tl.float64)
    shift = start + tl.sum(tl.where(inside, x - start[None, :], 0.0), axis=0) / rows
    d = tl.where(inside, x - shift[None, :], 0.0)
    # What rounding took from the mean.
    rest = tl.sum(d, axis=0) / rows
    d = tl.where(inside, d - rest[None, :], 0.0)
    m2 = tl.sum(d * d, axis=0).to(tl.float64)
    mean = shift.to(tl.float64) + rest.to(tl.float64)
    count = tl.load(count_ptr).to(tl.float64)
    shift, scale, offset = _finish(
        channel,
        column,
        n,
        mean,
        m2,
        count,
        mean_ptr,
        m2_ptr,
        weight_ptr,
        bias_ptr,
        mask_ptr,
        eps,
    )
    y = _normalised(x, shift[None, :], scale[None, :], offset[None, :], RELU)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
