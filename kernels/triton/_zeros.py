"""How the kernels that count zeros by channel walk over a dense activation.

Memory is taken for ``outer`` rows of ``length`` positions: a row is an image with its channels
outside, or one position of an image with its channels inside, and a few of them where fewer would
not end on 16 bytes. A program takes a tile, ``rows`` of these times ``width`` positions, some
``steps`` times downwards. So a position keeps its channel and is counted in registers; only at the
end are positions added up by channel: maps of 7×7 and 14×14 need neither ragged loads nor an
atomic for each map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Tiles", "add_by_channel", "flat_bits", "tiles"]

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# Bytes of a tile: with 128 threads eight loads of 16 bytes are under way in each.
TILE_BYTES = 16384
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
    most = tile_bytes // word_bytes
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


def flat_bits(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The memory of a dense tensor in its own order, as integers."""
    flat = x.as_strided((x.numel(),), (1,))
    return flat.view(BITS[x.element_size()] if dtype is None else dtype)


@triton.jit
def add_by_channel(
    counter_ptr, found, element, start, elements, channels, inner, SEGMENTS: tl.constexpr
):
    """Adds ``found[i]`` to the counter of the channel of element ``element[i]`` of a row.

    The first of them is ``start``; those past the row's end are ignored. Counters are int64, added
    to atomically.
    """
    found = tl.where(element < elements, found, 0)
    if SEGMENTS == 0:
        tl.atomic_add(
            counter_ptr + element % channels,
            found.to(tl.int64),
            mask=element < elements,
            sem="relaxed",
        )
    else:
        first = start // inner
        segment = tl.arange(0, SEGMENTS)
        here = segment[:, None] == (element // inner - first)[None, :]
        zeros = tl.sum(tl.where(here, found[None, :], 0), axis=1)
        # Segments that the row does not have found nothing.
        tl.atomic_add(
            counter_ptr + (first + segment) % channels,
            zeros.to(tl.int64),
            mask=zeros > 0,
            sem="relaxed",
        )
