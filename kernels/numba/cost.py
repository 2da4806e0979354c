"""Closed-form costs of many candidates, compiled when first called and cached on disk."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["candidate_costs"]


@njit(cache=True, fastmath=False, nogil=True)
def candidate_costs(widths, constant, starts, columns, values, left, right, coefficients):  # type: ignore[no-untyped-def]
    """Macs, params, channels, bytes ``[K, 4]`` (float64, exact integers) of widths ``[K, groups]``
    (int64).

    The forms are sparse rows: ``constant[r] + sum(values[j] * widths[columns[j]])`` over
    ``starts[r] <= j < starts[r + 1]``.
    """
    candidates, rows, terms = widths.shape[0], constant.shape[0], left.shape[0]
    out = np.empty((candidates, 4))
    form = np.empty(rows)
    for k in range(candidates):
        for r in range(rows):
            total = constant[r]
            for j in range(starts[r], starts[r + 1]):
                total += values[j] * widths[k, columns[j]]
            form[r] = total
        a = b = c = d = 0.0
        for t in range(terms):
            product = form[left[t]] * form[right[t]]
            a += coefficients[t, 0] * product
            b += coefficients[t, 1] * product
            c += coefficients[t, 2] * product
            d += coefficients[t, 3] * product
        out[k, 0], out[k, 1], out[k, 2], out[k, 3] = a, b, c, d
    return out
