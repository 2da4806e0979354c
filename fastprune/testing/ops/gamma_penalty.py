"""Cases of gamma_penalty."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import gamma_penalty
from fastprune.testing.ops._case import OpCase
from fastprune.testing.ops.gamma_subgradient import DTYPES, SIZES, arranged, vectors

__all__ = ["cases"]


def _make(
    sizes: Sequence[int],
    dtype: torch.dtype,
    how: str,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    scales = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    return (arranged(scales, how),)


def _odd(device: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
    return (vectors((64, 64), torch.float32, device, generator),)


def _call(scales: list[Tensor]) -> Tensor:
    return gamma_penalty(scales)


def cases() -> list[OpCase]:
    found = []
    for label, dtype in DTYPES:
        call = _call if dtype == torch.float32 else None
        found.append(OpCase(label, partial(_make, SIZES["plain"], dtype, ""), call))
        found.append(OpCase(f"{label}-odd", partial(_make, SIZES["odd"], dtype, "")))
        unaligned = partial(_make, SIZES["plain"], dtype, "unaligned")
        found.append(OpCase(f"{label}-unaligned", unaligned))
    for name, sizes in list(SIZES.items())[2:]:
        found.append(OpCase(name, partial(_make, sizes, torch.float32, "")))
    found.append(OpCase("strided", partial(_make, (5, 9), torch.float32, "strided")))
    found.append(OpCase("odd-numbers", _odd))
    return found
