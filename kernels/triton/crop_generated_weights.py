"""A hypernetwork's weights for many candidates, cropped, in one read of FC2, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant

__all__ = ["crop_generated_weights", "variants"]

# Candidates of one matrix product, the least that tensor cores take.
GROUP = 16
# Elements that the offset of every candidate's block is a multiple of.
ALIGNMENT = 16

# Arguments that tell a group's widths.
WIDTHS = tuple(f"w{i}" for i in range(GROUP))

# Of float32: three products of tensor cores, as exact as float32's own for the sums here; one, the
# default, is a thousand times less so.
PRECISION = "tf32x3"


@triton.jit(do_not_specialize=["features", "start", "candidates", "offset", *WIDTHS])
def crop_generated_weights_prepare(
    encodings_ptr,
    weight_ptr,
    bias_ptr,
    hidden_ptr,
    table_ptr,
    result_ptr,
    features,
    start,
    candidates,
    offset,
    w0,
    w1,
    w2,
    w3,
    w4,
    w5,
    w6,
    w7,
    w8,
    w9,
    w10,
    w11,
    w12,
    w13,
    w14,
    w15,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BIAS: tl.constexpr,
):
    """One program does what is small, for the group of candidates from ``start`` on.

    FC1 and the ReLU: ``hidden`` ``[K, H]``, rounded once to its dtype. The ``table`` below, from
    numbers that came with the launch: a copy from the host would have it wait, or, recorded in a
    CUDA graph, be made anew from memory that is no longer this. And the zeros after each block.

    Each of ``w0`` to ``w15`` is the channels kept, times 2^32, plus the rows of FC2 kept of each.
    ``offset`` is the first one's in the result.
    """
    group = tl.arange(0, GROUP)
    unit = tl.arange(0, PADDED)
    member = start + group
    there = member < candidates

    packed = tl.zeros([GROUP], tl.int64)
    widths = (w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15)
    for i in tl.static_range(GROUP):
        packed = tl.where(group == i, widths[i], packed)
    out, rows = packed >> 32, packed & 0xFFFFFFFF
    size = out * rows
    gap = (ALIGNMENT - size % ALIGNMENT) % ALIGNMENT
    begin = offset + tl.cumsum(size + gap) - size - gap
    tl.store(table_ptr + member, out, mask=there)
    tl.store(table_ptr + candidates + member, rows, mask=there)
    tl.store(table_ptr + 2 * candidates + member, begin, mask=there)
    fill = tl.arange(0, ALIGNMENT)[None, :]
    zeros = tl.zeros([GROUP, ALIGNMENT], result_ptr.dtype.element_ty)
    tl.store(result_ptr + (begin + size)[:, None] + fill, zeros, mask=fill < gap[:, None])

    total = tl.zeros([GROUP, PADDED], tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + unit, mask=unit < UNITS, other=0.0)
        total += bias.to(tl.float32)[None, :]
    for feature in range(0, features):
        x = tl.load(encodings_ptr + member * features + feature, mask=there, other=0.0)
        weight = tl.load(weight_ptr + unit * features + feature, mask=unit < UNITS, other=0.0)
        total += x.to(tl.float32)[:, None] * weight.to(tl.float32)[None, :]
    # Not a maximum: NaN stays.
    hidden = tl.where(total < 0, 0.0, total).to(hidden_ptr.dtype.element_ty)
    inside = there[:, None] & (unit < UNITS)[None, :]
    tl.store(hidden_ptr + member[:, None] * UNITS + unit[None, :], hidden, mask=inside)


@triton.jit
def members(
    table_ptr,
    hidden_ptr,
    channel,
    start,
    candidates,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Of a group: channels and rows kept, where a channel begins in the result, hidden units."""
    member = start + tl.arange(0, GROUP)
    unit = tl.arange(0, PADDED)
    there = member < candidates
    out = tl.load(table_ptr + member, mask=there, other=0).to(tl.int32)
    rows = tl.load(table_ptr + candidates + member, mask=there, other=0).to(tl.int32)
    offset = tl.load(table_ptr + 2 * candidates + member, mask=there, other=0)
    begin = offset + rows.to(tl.int64) * channel
    inside = there[:, None] & (unit < UNITS)[None, :]
    at = hidden_ptr + member[:, None] * UNITS + unit[None, :]
    return out, rows, begin, tl.load(at, mask=inside, other=0.0)


@triton.jit
def load_rows(weight_ptr, row, limit, unit, UNITS: tl.constexpr, PADDED: tl.constexpr):
    """A tile of FC2: rows below ``limit``, zeros elsewhere."""
    inside = (row < limit)[:, None]
    if UNITS != PADDED:
        inside = inside & (unit < UNITS)[None, :]
    return tl.load(weight_ptr, mask=inside, other=0.0)


@triton.jit
def emit(
    result_ptr,
    weight,
    bias,
    row,
    begin,
    limit,
    hidden,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Makes and stores, from ``begin`` on, the first ``limit`` rows of a channel."""
    if UPCAST:
        weight, hidden = weight.to(tl.float32), hidden.to(tl.float32)
    made = tl.dot(hidden, tl.trans(weight), input_precision=PRECISION) + bias[None, :]
    to = begin[:, None] + row[None, :]
    kept = row[None, :] < limit[:, None]
    tl.store(result_ptr + to, made.to(result_ptr.dtype.element_ty), mask=kept)


# Widths change with every candidate: compiling anew for each kind of number takes a second a time.
@triton.jit(do_not_specialize=["candidates", "stride", "channels", "per_program", "row_blocks"])
def crop_generated_weights_tiles(
    hidden_ptr,
    fc2_ptr,
    fc2_bias_ptr,
    table_ptr,
    result_ptr,
    candidates,
    stride,
    channels,
    per_program,
    row_blocks,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    BIAS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A program makes a block of rows of ``per_program`` output channels, for every candidate.

    The next channel's rows are on their way while one's are multiplied. ``table`` is int64
    ``[3, candidates]``: output channels kept, rows of FC2 kept of each, offset in the result.
    ``stride`` is the number of FC2's rows of one output channel, ``channels`` the most that a
    candidate keeps.
    """
    # Channels and rows of one channel fit int32: the op sends no FC2 of over 2^30 rows here.
    block = tl.program_id(0)
    first = (block // row_blocks) * per_program
    last = tl.minimum(first + per_program, channels)
    row = (block % row_blocks) * ROWS + tl.arange(0, ROWS)
    member = tl.arange(0, GROUP)
    unit = tl.arange(0, PADDED)

    # Rows that some candidate keeps of the first channel; of the later ones none keeps more.
    reach = tl.zeros([GROUP], tl.int32)
    for start in range(0, candidates, GROUP):
        there = start + member < candidates
        out = tl.load(table_ptr + start + member, mask=there, other=0)
        rows = tl.load(table_ptr + candidates + start + member, mask=there, other=0)
        reach = tl.maximum(reach, tl.where(out > first, rows, 0).to(tl.int32))
    reach = tl.max(reach)
    if (block % row_blocks) * ROWS >= reach:
        return

    at = first.to(tl.int64) * stride + row
    weight_ptr = fc2_ptr + at[:, None] * UNITS + unit[None, :]
    weight = load_rows(weight_ptr, row, reach, unit, UNITS, PADDED)
    if ONE_GROUP:
        out, rows, begin, hidden = members(
            table_ptr, hidden_ptr, first, 0, candidates, UNITS, PADDED, GROUP
        )
    for channel in range(first, last):
        weight_ptr += stride.to(tl.int64) * UNITS
        following = tl.where(channel + 1 < last, reach, 0)
        ahead = load_rows(weight_ptr, row, following, unit, UNITS, PADDED)
        bias = tl.zeros([ROWS], tl.float32)
        if BIAS:
            bias += tl.load(fc2_bias_ptr + at, mask=row < reach, other=0.0).to(tl.float32)
        if ONE_GROUP:
            limit = tl.where(channel < out, rows, 0)
            emit(result_ptr, weight, bias, row, begin, limit, hidden, PRECISION, UPCAST)
            begin += rows
        else:
            for start in range(0, candidates, GROUP):
                out, rows, begin, hidden = members(
                    table_ptr, hidden_ptr, channel, start, candidates, UNITS, PADDED, GROUP
                )
                limit = tl.where(channel < out, rows, 0)
                emit(result_ptr, weight, bias, row, begin, limit, hidden, PRECISION, UPCAST)
        at += stride
        weight = ahead


@dataclass(frozen=True, slots=True)
class _Launch:
    """Constants of a compilation: a tile is ``rows`` of FC2, ``padded`` columns wide."""

    padded: int
    rows: int
    warps: int = 4


def _launch(units: int, itemsize: int, rows: int) -> _Launch:
    """By bytes of a row of FC2 and by how many rows of a channel are kept.

    A tile has 8 kB: with the next one on its way, and three or more programs on a processor,
    more is in flight than memory takes to answer. The hidden units of wider rows need registers.
    """
    padded = max(16, triton.next_power_of_2(units))
    tile = min(256, max(32, 8192 // (padded * itemsize)))
    rows = min(tile, max(32, tile // 2, triton.next_power_of_2(rows)))
    return _Launch(padded, rows, 8 if rows >= 128 else 4)


def _channels_a_program(tiles: int, programs: int) -> int:
    """Many, to set up seldom; few, to keep every processor of a large GPU busy several times."""
    return min(16, max(1, tiles // programs))


def crop_generated_weights(
    encodings: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    shape: Sequence[int],
    out_channels: Sequence[int],
    in_channels: Sequence[int],
) -> Tensor:
    """All candidates' blocks in one flat tensor, each filled up with zeros to ``ALIGNMENT``."""
    positions = shape[2] * shape[3]
    outs, rows = list(out_channels), [positions * n for n in in_channels]
    if outs and min(in_channels) == shape[1]:
        # Nobody crops inputs (a stem, a depthwise convolution): one long run, not many short.
        outs, rows = [1] * len(outs), [o * r for o, r in zip(outs, rows, strict=True)]
    offsets = [0]
    for out, kept in zip(outs, rows, strict=True):
        offsets.append(offsets[-1] + -(-out * kept // ALIGNMENT) * ALIGNMENT)
    result = encodings.new_empty(offsets[-1])
    if not outs:
        return result
    units = fc1_weight.shape[0]
    launch = _launch(units, fc2_weight.element_size(), max(rows))
    row_blocks = triton.cdiv(max(rows), launch.rows)
    per_program = _channels_a_program(row_blocks * max(outs), 2048 if result.is_cuda else 8)
    grid = (triton.cdiv(max(outs), per_program) * row_blocks,)
    hidden = encodings.new_empty(len(outs), units)
    table = encodings.new_empty((3, len(outs)), dtype=torch.int64)
    widths = [(out << 32) + kept for out, kept in zip(outs, rows, strict=True)]
    # Nobody's: large, as the others are, for Triton compiles anew for a number under 2^31.
    widths += [1 << 32] * (-len(widths) % GROUP)
    encodings, fc1_weight = encodings.contiguous(), fc1_weight.contiguous()
    fc1_bias, fc2_bias = (b if b is None else b.contiguous() for b in (fc1_bias, fc2_bias))
    with torch.cuda.device_of(result):
        for start in range(0, len(outs), GROUP):
            crop_generated_weights_prepare[(1,)](
                encodings,
                fc1_weight,
                fc1_bias,
                hidden,
                table,
                result,
                encodings.shape[1],
                start,
                len(outs),
                offsets[start],
                *widths[start : start + GROUP],
                UNITS=units,
                PADDED=launch.padded,
                GROUP=GROUP,
                ALIGNMENT=ALIGNMENT,
                BIAS=fc1_bias is not None,
            )
        crop_generated_weights_tiles[grid](
            hidden,
            fc2_weight,
            fc2_bias,
            table,
            result,
            len(outs),
            shape[1] * positions,
            max(outs),
            per_program,
            row_blocks,
            UNITS=units,
            PADDED=launch.padded,
            ROWS=launch.rows,
            GROUP=GROUP,
            BIAS=fc2_bias is not None,
            ONE_GROUP=len(outs) <= GROUP,
            PRECISION=PRECISION,
            # The interpreter of Triton 3.9 multiplies the bits of bfloat16 as integers.
            UPCAST=not result.is_cuda and result.dtype == torch.bfloat16,
            num_warps=launch.warps,
            num_stages=1,
        )
    return result


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    sizes = [(32, 512, True), (32, 512, False), (32, 24, True), (64, 512, True), (48, 512, True)]
    found = []
    for dtype, itemsize in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        for units, rows, one_group in sizes:
            found.append(_tiles_variant(dtype, _launch(units, itemsize, rows), units, one_group))
        found.append(_prepare_variant(dtype, _launch(32, itemsize, 512), 32))
    return tuple(found)


def _tiles_variant(dtype: str, launch: _Launch, units: int, one_group: bool) -> Variant:
    constants = {
        "UNITS": units,
        "PADDED": launch.padded,
        "ROWS": launch.rows,
        "GROUP": GROUP,
        "BIAS": True,
        "ONE_GROUP": one_group,
        "PRECISION": PRECISION,
        "UPCAST": False,
    }
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("hidden", "fc2", "fc2_bias")}
    pointers |= {"table_ptr": "*i64", "result_ptr": f"*{dtype}"}
    numbers = ("candidates", "stride", "channels", "per_program", "row_blocks")
    return Variant(
        f"tiles-{units}x{launch.rows}-{'one' if one_group else 'many'}-{dtype}",
        crop_generated_weights_tiles,
        pointers | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr"),
        constants,
        aligned=tuple(pointers),
        warps=launch.warps,
        stages=1,
    )


def _prepare_variant(dtype: str, launch: _Launch, units: int) -> Variant:
    constants = {
        "UNITS": units,
        "PADDED": launch.padded,
        "GROUP": GROUP,
        "ALIGNMENT": ALIGNMENT,
        "BIAS": True,
    }
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("encodings", "weight", "bias", "hidden")}
    pointers |= {"table_ptr": "*i64", "result_ptr": f"*{dtype}"}
    numbers = dict.fromkeys(("features", "start", "candidates", "offset"), "i32")
    return Variant(
        f"prepare-{units}-{dtype}",
        crop_generated_weights_prepare,
        pointers | numbers | dict.fromkeys(WIDTHS, "i64") | dict.fromkeys(constants, "constexpr"),
        constants,
        aligned=tuple(pointers),
        wide=False,
    )
