"""How the kernels that count zeros by channel walk over a dense activation.

Memory is taken for ``outer`` rows of ``length`` positions: a row is an image with its channels
outside, or one position of an image with its channels inside, and a few of them where fewer would
not end on 16 bytes. A program takes a tile, ``rows`` of these times ``width`` positions, some
``steps`` times downwards. So a position keeps its channel and is counted in registers; only at the
end are positions added up by channel: maps of 7×7 and 14×14 need neither ragged loads nor an
atomic for each map.

Kernels are not specialised on ``steps``: where one step is known beforehand, Triton 3.9's code
adds up truth values through an array in local memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "Tiles",
    "add_by_channel",
    "add_words_by_channel",
    "flat_words",
    "in_pairs",
    "stretches",
    "tiles",
]

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# Bytes of a tile: with 128 threads eight loads of 16 bytes are under way in each.
TILE_BYTES = 16384
# Words of a tile: 32 counters in each thread; 64 leave no registers.
MOST_WORDS = 4096
# Bytes of one row of a tile: what a warp loads at once.
ROW_BYTES = 512
# Enough programs to fill large GPUs a few times over; larger tensors give each more tiles.
PROGRAMS = 1536
MOST_STEPS = 16
# Along the second axis of a grid.
MOST_PROGRAMS = 65535


@dataclass(frozen=True, slots=True)
class Tiles:
    """A launch over ``total`` words of ``pack`` elements each; see the module.

    Attributes:
        total: words in the tensor.
        length: words in a row; the last row may be short.
        channels: C.
        inner: elements of one channel in a row; 1 where channels are inside.
        width: words of a tile's row, a power of two.
        rows: rows of a tile, a power of two.
        steps: tiles of a program.
        segments: power of two that a tile's row has no more stretches of one channel than; 0
            where every element begins another.
        grid: programs along a row, and downwards.
    """

    total: int
    length: int
    channels: int
    inner: int
    width: int
    rows: int
    steps: int
    segments: int
    grid: tuple[int, int]


def tiles(
    shape: tuple[int, ...], outside: bool, word_bytes: int, pack: int, tile_bytes: int = TILE_BYTES
) -> Tiles:
    """The launch for an activation ``[N, C, ...]`` that is not empty.

    Args:
        shape: of the activation.
        outside: whether memory is ``[N, C, inner]``; otherwise ``[N, inner, C]``.
        word_bytes: of what is loaded at once for one lane of the tile.
        pack: elements in a word.
        tile_bytes: of a tile, a power of two.
    """
    size = 1
    for extent in shape:
        size *= extent
    channels = shape[1]
    inner = size // (shape[0] * channels) if outside else 1
    # Triton loads 16 bytes at once where it knows that rows are multiples of 16 words.
    length = channels * inner
    length *= 16 * pack // gcd(length, 16 * pack)
    length, total = length // pack, size // pack
    outer = triton.cdiv(total, length)
    most = min(tile_bytes // word_bytes, MOST_WORDS)
    least = ROW_BYTES // word_bytes
    # Few images: wider tiles of fewer rows; not wider than four times, as adding up by channel
    # takes time by the square of the width.
    width = max(least, min(most // triton.next_power_of_2(outer), 4 * least))
    width = min(width, triton.next_power_of_2(length))
    rows = most // width
    along, down = triton.cdiv(length, width), triton.cdiv(outer, rows)
    steps = max(1, min(along * down // PROGRAMS, MOST_STEPS), triton.cdiv(down, MOST_PROGRAMS))
    touched = (width * pack + inner - 2) // inner + 1
    segments = 0 if inner == 1 else triton.next_power_of_2(touched)
    grid = (along, triton.cdiv(down, steps))
    return Tiles(total, length, channels, inner, width, rows, steps, segments, grid)


def in_pairs(x: Tensor) -> bool:
    """Whether the memory of a dense tensor is whole words of two elements of 16 bits."""
    return x.element_size() == 2 and x.numel() % 2 == 0 and x.storage_offset() % 2 == 0


def flat_words(x: Tensor, pack: int) -> Tensor:
    """The memory of a dense tensor in its own order, as integers of ``pack`` elements."""
    return x.as_strided((x.numel(),), (1,)).view(BITS[pack * x.element_size()])


@triton.jit
def stretches(lane, start, inner, SEGMENTS: tl.constexpr):
    """The stretch of one channel that element ``start`` of a row is in, and for each of the
    elements ``start + lane`` how many stretches later it is. Channels begin again after C.

    int32 suffices: there are no more stretches than channels in a few rows.
    """
    if SEGMENTS == 0:
        first = start
        later = lane
    else:
        first = start // inner
        within = start - first * inner
        # Vectors are not divided in 64 bits, which is a call: lanes see either two stretches at
        # most, or short ones.
        if SEGMENTS == 2:
            later = (lane >= inner - within).to(tl.int32)
        else:
            later = (within.to(tl.int32) + lane) // inner
    return first.to(tl.int32), later


@triton.jit
def add_by_channel(
    counter_ptr, found, lane, start, elements, channels, inner, SEGMENTS: tl.constexpr
):
    """Adds ``found[i]`` to the counter of the channel of element ``start + lane[i]`` of a row.

    Elements past the row's end are ignored. Counters are int64, added to atomically.
    """
    first, later = stretches(lane, start, inner, SEGMENTS)
    if SEGMENTS == 0:
        tl.atomic_add(
            counter_ptr + (first + later) % channels,
            found.to(tl.int64),
            mask=first + later < elements,
            sem="relaxed",
        )
    else:
        within = start + lane < elements
        segment = tl.arange(0, SEGMENTS)
        here = (segment[:, None] == later[None, :]) & within[None, :]
        zeros = tl.sum(tl.where(here, found[None, :], 0), axis=1)
        # Segments that the row does not have found nothing.
        tl.atomic_add(
            counter_ptr + (first + segment) % channels,
            zeros.to(tl.int64),
            mask=zeros > 0,
            sem="relaxed",
        )


@triton.jit
def add_words_by_channel(
    counter_ptr,
    found,
    lane,
    start,
    length,
    channels,
    inner,
    PACK: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """`add_by_channel` for words: with two elements in each, so are their counts in ``found``.

    A program sees fewer than 65536 rows: no count of a lower half reaches the upper one.
    """
    if PACK == 2:
        low, high, first, end = 2 * lane, 2 * lane + 1, 2 * start, 2 * length
        add_by_channel(counter_ptr, found & 0xFFFF, low, first, end, channels, inner, SEGMENTS)
        add_by_channel(counter_ptr, found >> 16, high, first, end, channels, inner, SEGMENTS)
    else:
        add_by_channel(counter_ptr, found, lane, start, length, channels, inner, SEGMENTS)
