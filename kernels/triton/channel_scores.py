"""Sums of |w| and w² by row and by column of many weights at once, on a GPU.

Two launches for any number of weights: tiles of all weights write partial sums, and a second
kernel adds those of each channel. Weights whose rows do not all start at 16 bytes take a third. No
atomics, so every run gives the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant

__all__ = ["channel_scores", "variants"]

# A program goes down its tile of COLUMNS columns in steps of STEP rows: its column sums stay in
# registers, 16 of each kind a thread, and it writes 2 / height + 2 / COLUMNS numbers for one that
# it reads.
STEP, COLUMNS = 8, 256
# Where rows start anywhere, each number takes a load and an address of its own: fewer of them fit
# into the registers.
RAGGED_STEP = 4
# Of the second kernel: channels of a program, and partial sums that it adds in one step.
CHANNELS, TERMS = 32, 32
# Integers of an entry of the two tables of jobs.
WEIGHT_FIELDS, SIDE_FIELDS = 6, 8


@triton.jit
def load_step(x_ptr, row, column, end, length):
    inside = (row < end)[:, None] & (column < length)[None, :]
    at = row[:, None] * length + column[None, :]
    return tl.abs(tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32))


@triton.jit
def channel_scores_tiles(
    like_ptr,
    jobs_ptr,
    programs_ptr,
    scratch_ptr,
    height,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    FIELDS: tl.constexpr,
    DIVISOR: tl.constexpr,
):
    """A program adds up one tile of one weight, of `height` rows.

    Rows are as long as a multiple of DIVISOR; if that is more than 1, they start at 16 bytes.
    """
    # An int32 is enough: a table of 2^30 programs would itself take 17 GB.
    entry = programs_ptr + 2 * tl.program_id(0)
    job_ptr = jobs_ptr + FIELDS * tl.load(entry)
    tile = tl.load(entry + 1)
    x_ptr = tl.load(job_ptr).to(like_ptr.dtype)
    rows = tl.load(job_ptr + 1)
    length = tl.multiple_of(tl.load(job_ptr + 2), DIVISOR)
    tiles = tl.load(job_ptr + 3)
    if DIVISOR > 1:
        x_ptr = tl.multiple_of(x_ptr, 16)
    across = tile % tiles
    down = tile // tiles
    column = across * COLUMNS + tl.arange(0, COLUMNS)
    row = down * height + tl.arange(0, STEP)
    end = tl.minimum(rows, (down + 1) * height)
    row_sums = scratch_ptr + tl.load(job_ptr + 4) + across * 2 * rows
    column_sums = scratch_ptr + tl.load(job_ptr + 5) + down * 2 * length + column
    absolute = tl.zeros([STEP, COLUMNS], tl.float32)
    square = tl.zeros([STEP, COLUMNS], tl.float32)
    x = load_step(x_ptr, row, column, end, length)
    for _ in range(0, height, STEP):
        # On its way while this step is added up: what is stored could be what is loaded, so the
        # compiler does not move loads before stores.
        ahead = load_step(x_ptr, row + STEP, column, end, length)
        squared = x * x
        absolute += x
        square += squared
        tl.store(row_sums + row, tl.sum(x, axis=1), mask=row < end)
        tl.store(row_sums + rows + row, tl.sum(squared, axis=1), mask=row < end)
        x = ahead
        row += STEP
    tl.store(column_sums, tl.sum(absolute, axis=0), mask=column < length)
    tl.store(column_sums + length, tl.sum(square, axis=0), mask=column < length)


@triton.jit
def channel_scores_sums(
    jobs_ptr,
    programs_ptr,
    scratch_ptr,
    out_ptr,
    CHANNELS: tl.constexpr,
    TERMS: tl.constexpr,
    FIELDS: tl.constexpr,
):
    """A program adds the partial sums of a block of channels of one side of one weight."""
    # An int32 is enough: a table of 2^30 programs would itself take 17 GB.
    entry = programs_ptr + 2 * tl.program_id(0)
    job_ptr = jobs_ptr + FIELDS * tl.load(entry)
    channel = tl.load(entry + 1) * CHANNELS + tl.arange(0, CHANNELS)
    channels = tl.load(job_ptr)
    out = out_ptr + tl.load(job_ptr + 1) + channel
    partial = scratch_ptr + tl.load(job_ptr + 2)
    # Of one channel: `inner` terms, `inner_step` apart, in each of `outer` runs of both kinds.
    next_channel = tl.load(job_ptr + 3)
    inner = tl.load(job_ptr + 4)
    inner_step = tl.load(job_ptr + 5)
    outer = tl.load(job_ptr + 6)
    run = tl.load(job_ptr + 7)
    absolute = tl.zeros([CHANNELS, TERMS], tl.float32)
    square = tl.zeros([CHANNELS, TERMS], tl.float32)
    for start in range(0, inner * outer, TERMS):
        term = start + tl.arange(0, TERMS)
        at = (term // inner) * 2 * run + (term % inner) * inner_step
        here = partial + channel[:, None] * next_channel + at[None, :]
        inside = (channel < channels)[:, None] & (term < inner * outer)[None, :]
        absolute += tl.load(here, mask=inside, other=0.0)
        square += tl.load(here + run, mask=inside, other=0.0)
    tl.store(out, tl.sum(absolute, axis=1), mask=channel < channels)
    tl.store(out + channels, tl.sum(square, axis=1), mask=channel < channels)


class Weight(NamedTuple):
    """A dense weight: its address and its sizes, ``[rows, channels, positions]``."""

    address: int
    rows: int
    channels: int
    positions: int
    channels_last: bool


class Work(NamedTuple):
    """What the two kernels are told.

    Attributes:
        weights: int64 ``[weights, WEIGHT_FIELDS]``.
        sides: int64 ``[2 * weights, SIDE_FIELDS]``.
        tiles: (divisor of row lengths, int64 ``[programs, 2]``: a weight and its tile).
        blocks: int64 ``[programs, 2]``: a side and its block of channels.
        height: rows of a tile.
        scratch: how many partial sums there are.
    """

    weights: Tensor
    sides: Tensor
    tiles: tuple[tuple[int, Tensor], ...]
    blocks: Tensor
    height: int
    scratch: int


def channel_scores(weights: Sequence[Tensor], out: Tensor) -> None:
    """Writes the sums of dense weights ``[O, I, ...]`` of one dtype to ``out``.

    Args:
        out: float32; for each weight Σ|w| and Σw² of rows, then of channels.
    """
    first = weights[0]
    known = tuple(
        Weight(w.data_ptr(), w.shape[0], w.shape[1], w.shape[2:].numel(), not w.is_contiguous())
        for w in weights
    )
    with torch.cuda.device_of(first):
        work = _work(known, first)
        scratch = out.new_empty(work.scratch)
        for divisor, programs in work.tiles:
            channel_scores_tiles[(len(programs),)](
                first,
                work.weights,
                programs,
                scratch,
                work.height,
                STEP=STEP if divisor > 1 else RAGGED_STEP,
                COLUMNS=COLUMNS,
                FIELDS=WEIGHT_FIELDS,
                DIVISOR=divisor,
                num_warps=4,
            )
        if len(work.blocks):
            channel_scores_sums[(len(work.blocks),)](
                work.sides,
                work.blocks,
                scratch,
                out,
                CHANNELS=CHANNELS,
                TERMS=TERMS,
                FIELDS=SIDE_FIELDS,
                num_warps=4,
            )


def _work(weights: tuple[Weight, ...], like: Tensor) -> Work:
    """The work for these weights, kept while the same ones are scored again and again."""
    if like.device.type != "cuda":
        return _planned(weights, like.element_size(), like.device, 0)
    if torch.cuda.is_current_stream_capturing():
        return _planned.__wrapped__(weights, like.element_size(), like.device, None)
    # By stream: on another one the tables could be read before they have arrived.
    stream = torch.cuda.current_stream().cuda_stream
    return _planned(weights, like.element_size(), like.device, stream)


# Replays of a captured CUDA graph copy the tables again.
_captured: list[Tensor] = []


@functools.lru_cache(maxsize=32)
def _planned(
    weights: tuple[Weight, ...], item: int, device: torch.device, stream: int | None
) -> Work:
    numel = sum(w.rows * w.channels * w.positions for w in weights)
    height = _height(numel)
    weight_jobs: list[int] = []
    side_jobs: list[int] = []
    tiles: dict[int, list[int]] = {}
    blocks: list[int] = []
    scratch = written = 0
    for place, w in enumerate(weights):
        length = w.channels * w.positions
        across, down = triton.cdiv(length, COLUMNS), triton.cdiv(w.rows, height)
        row_sums, column_sums = scratch, scratch + across * 2 * w.rows
        scratch = column_sums + down * 2 * length
        weight_jobs += [w.address, w.rows, length, across, row_sums, column_sums]
        vector = 16 // item
        divisor = vector if w.address % 16 == 0 and length % vector == 0 else 1
        tiles.setdefault(divisor, []).extend(n for t in range(across * down) for n in (place, t))
        next_channel, next_position = (1, w.channels) if w.channels_last else (w.positions, 1)
        for channels, side in (
            (w.rows, [row_sums, 1, 1, 0, across, w.rows]),
            (w.channels, [column_sums, next_channel, w.positions, next_position, down, length]),
        ):
            number = len(side_jobs) // SIDE_FIELDS
            side_jobs += [channels, written, *side]
            blocks += [n for b in range(triton.cdiv(channels, CHANNELS)) for n in (number, b)]
            written += 2 * channels
    found = _upload([weight_jobs, side_jobs, blocks, *tiles.values()], device, stream)
    return Work(
        weights=found[0],
        sides=found[1],
        tiles=tuple((d, t.view(-1, 2)) for d, t in zip(tiles, found[3:], strict=True) if len(t)),
        blocks=found[2].view(-1, 2),
        height=height,
        scratch=scratch,
    )


def _height(numel: int) -> int:
    """Rows of a tile: few where there would be too few tiles for all processors."""
    if numel >= 1 << 26:
        return 128
    return 64 if numel >= 1 << 23 else 32


def _upload(tables: list[list[int]], device: torch.device, stream: int | None) -> list[Tensor]:
    """All tables by one copy that nobody waits for."""
    sizes = [len(table) for table in tables]
    host = torch.tensor([number for table in tables for number in table], dtype=torch.int64)
    if device.type == "cuda":
        host = host.pin_memory()
        if stream is None:
            _captured.append(host)
    return list(host.to(device, non_blocking=True).split(sizes))


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    tables = {"jobs_ptr": "*i64", "programs_ptr": "*i64", "scratch_ptr": "*fp32"}
    of_tiles = ("STEP", "COLUMNS", "FIELDS", "DIVISOR")
    found = [
        Variant(
            f"tiles-{dtype}{'' if aligned else '-ragged'}",
            channel_scores_tiles,
            {
                "like_ptr": f"*{dtype}",
                **tables,
                "height": "i32",
                **dict.fromkeys(of_tiles, "constexpr"),
            },
            {
                "STEP": STEP if aligned else RAGGED_STEP,
                "COLUMNS": COLUMNS,
                "FIELDS": WEIGHT_FIELDS,
                "DIVISOR": divisor if aligned else 1,
            },
            aligned=("like_ptr", *tables, "height"),
            wide=aligned,
        )
        for dtype, divisor in (("fp32", 4), ("fp16", 8), ("bf16", 8))
        for aligned in (True, False)
    ]
    of_sums = ("CHANNELS", "TERMS", "FIELDS")
    found.append(
        Variant(
            "sums",
            channel_scores_sums,
            {**tables, "out_ptr": "*fp32", **dict.fromkeys(of_sums, "constexpr")},
            {"CHANNELS": CHANNELS, "TERMS": TERMS, "FIELDS": SIDE_FIELDS},
            aligned=(*tables, "out_ptr"),
            wide=False,
        )
    )
    return tuple(found)
