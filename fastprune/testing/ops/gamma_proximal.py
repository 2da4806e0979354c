"""Cases of gamma_proximal_."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import gamma_proximal_
from fastprune.testing.ops._case import OpCase
from fastprune.testing.ops.gamma_subgradient import (
    DTYPES,
    SIZES,
    arranged,
    strengths_of,
    vectors,
)

__all__ = ["cases"]


def _make(
    sizes: Sequence[int],
    dtype: torch.dtype,
    kind: str,
    how: str,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    scales = vectors(sizes, dtype, device, generator)
    return arranged(scales, how), *strengths_of(kind, len(sizes), device)


def _call(scales: list[Tensor], thresholds: list[float], factors: Tensor | None) -> None:
    gamma_proximal_(scales, thresholds if factors is None else factors)


def cases() -> list[OpCase]:
    found = []
    for label, dtype in DTYPES:
        for kind in ("one", "each", "one-tensor", "each-tensor", "both"):
            make = partial(_make, SIZES["plain"], dtype, kind, "")
            call = _call if dtype == torch.float32 and kind != "both" else None
            found.append(OpCase(f"{label}-{kind}", make, call))
        found.append(OpCase(f"{label}-odd", partial(_make, SIZES["odd"], dtype, "each", "")))
        found.append(
            OpCase(f"{label}-unaligned", partial(_make, SIZES["plain"], dtype, "one", "unaligned"))
        )
    for name, sizes in list(SIZES.items())[2:]:
        found.append(OpCase(name, partial(_make, sizes, torch.float32, "one", "")))
    found.append(OpCase("strided", partial(_make, (5, 9), torch.float32, "one", "strided")))
    return found
