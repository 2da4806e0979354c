"""Zeros by channel where there is no compiled extension."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

__all__ = ["zero_count"]

# Zero is all bits but the sign, so integers of the same size tell it for every floating type,
# bfloat16 included, which numpy does not have.
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@njit(cache=True, nogil=True)
def _channels_outside(bits, magnitude, counter):  # type: ignore[no-untyped-def]
    for n in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            zeros = 0
            for i in range(bits.shape[2]):
                zeros += (bits[n, c, i] & magnitude) == 0
            counter[c] += zeros


@njit(cache=True, nogil=True)
def _channels_inside(bits, magnitude, counter):  # type: ignore[no-untyped-def]
    for row in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            counter[c] += (bits[row, c] & magnitude) == 0


def zero_count(x: Tensor, counter: Tensor) -> None:
    """Adds the zeros of a dense ``x`` ``[N, C, ...]`` to ``counter`` int64 ``[C]``."""
    if x.numel() == 0:
        return
    bits = x.view(BITS[x.element_size()])
    if x.is_contiguous():
        rows = bits.view(x.shape[0], x.shape[1], -1).numpy()
        magnitude = rows.dtype.type(np.iinfo(rows.dtype).max)
        _channels_outside(rows, magnitude, counter.numpy())
        return
    rows = bits.movedim(1, -1).view(-1, x.shape[1]).numpy()
    _channels_inside(rows, rows.dtype.type(np.iinfo(rows.dtype).max), counter.numpy())
