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

# Positions until counters as narrow as the elements, which fill vectors best, would overflow.
MOST = 32767


@njit(cache=True, nogil=True)
def _channels_outside(bits, magnitude, zero, one, counter):  # type: ignore[no-untyped-def]
    # numba makes a sum of small integers one of int64, which halves vectors or worse; cells of an
    # array stay as they are.
    zeros = np.zeros_like(bits[0, 0])
    for start in range(0, bits.shape[0], MOST):
        for c in range(bits.shape[1]):
            zeros[:] = 0
            for n in range(start, min(start + MOST, bits.shape[0])):
                for i in range(bits.shape[2]):
                    zeros[i] += one if (bits[n, c, i] & magnitude) == 0 else zero
            for i in range(bits.shape[2]):
                counter[c] += zeros[i]


@njit(cache=True, nogil=True)
def _channels_inside(bits, magnitude, zero, one, counter):  # type: ignore[no-untyped-def]
    zeros = np.zeros_like(bits[0])
    for start in range(0, bits.shape[0], MOST):
        zeros[:] = 0
        for row in range(start, min(start + MOST, bits.shape[0])):
            for c in range(bits.shape[1]):
                zeros[c] += one if (bits[row, c] & magnitude) == 0 else zero
        for c in range(bits.shape[1]):
            counter[c] += zeros[c]


def zero_count(x: Tensor, counter: Tensor) -> None:
    """Adds the zeros of a dense ``x`` ``[N, C, ...]`` to ``counter`` int64 ``[C]``."""
    if x.numel() == 0:
        return
    bits = x.view(BITS[x.element_size()])
    outside = x.is_contiguous() and x.numel() > x.shape[0] * x.shape[1]
    if outside:
        rows = bits.view(x.shape[0], x.shape[1], -1).numpy()
    else:
        rows = bits.movedim(1, -1).reshape(-1, x.shape[1]).numpy()
    integer = rows.dtype.type
    constants = integer(np.iinfo(integer).max), integer(0), integer(1)
    (_channels_outside if outside else _channels_inside)(rows, *constants, counter.numpy())
