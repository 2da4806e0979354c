"""Cases of gamma_subgradient_, and the lists of scales that all ops on them are tried with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import gamma_subgradient_
from fastprune.testing.ops._case import OpCase

__all__ = ["DTYPES", "SIZES", "arranged", "cases", "strengths_of", "vectors"]

DTYPES = (
    ("fp32", torch.float32),
    ("fp16", torch.float16),
    ("bf16", torch.bfloat16),
    ("fp64", torch.float64),
)

SIZES: dict[str, tuple[int, ...]] = {
    "plain": (64, 256, 128, 512),
    "odd": (1, 3, 33, 127, 130, 1027),
    "one-layer": (64,),
    "one-channel": (1,),
    "no-channels": (8, 0, 5),
    "nothing": (0,),
    "200-layers": (7,) * 200,
    "2000-layers": (3,) * 2000,
    "large-layer": (150_001, 16),
}


def vectors(
    sizes: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> list[Tensor]:
    """Normal numbers with zeros of both signs, a subnormal, NaN and infinities among them."""
    odd = (0.0, -0.0, 1e-40, float("nan"), float("inf"), float("-inf"))
    found = []
    for size in sizes:
        x = torch.randn(size, generator=generator)
        for i, number in enumerate(odd[: size // 2]):
            x[2 * i :: 97] = number
        found.append(x.to(device, dtype))
    return found


def strengths_of(
    kind: str, layers: int, device: torch.device
) -> tuple[list[float], Tensor | None]:
    """Strengths and factors as the ops take them."""
    each = [0.01 * (i % 5) for i in range(layers)]
    if kind == "one":
        return [0.013], None
    if kind == "each":
        return each, None
    if kind == "one-tensor":
        return [1.0], torch.tensor(0.013, device=device)
    if kind == "each-tensor":
        return [1.0], torch.tensor(each, device=device)
    return [0.5 * s for s in each], torch.tensor([2.0], device=device)


def arranged(tensors: list[Tensor], how: str) -> list[Tensor]:
    """The same numbers in every second entry of longer memory, or from an odd address on."""
    if how == "strided":
        return [torch.stack([t, t], 1)[:, 0] for t in tensors]
    if how == "unaligned":
        return [torch.cat([t[:0].new_zeros(1), t])[1:] for t in tensors]
    return tensors


def _make(
    sizes: Sequence[int],
    dtype: torch.dtype,
    kind: str,
    how: str,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    scales = vectors(sizes, dtype, device, generator)
    gradients = [torch.randn(s.shape, generator=generator).to(device, dtype) for s in scales]
    strengths = strengths_of(kind, len(sizes), device)
    return arranged(scales, how), arranged(gradients, how), *strengths


def _mixed(device: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
    scales, gradients, *rest = _make((8, 8, 8), torch.float32, "one", "", device, generator)
    dtypes = (torch.float32, torch.float16, torch.float64)
    scales, gradients = (
        [t.to(dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
        for tensors in (scales, gradients)
    )
    return scales, gradients, *rest


def _call(
    scales: list[Tensor], gradients: list[Tensor], strengths: list[float], factors: Tensor | None
) -> None:
    gamma_subgradient_(scales, gradients, strengths if factors is None else factors)


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
        for kind in ("one", "each-tensor"):
            make = partial(_make, sizes, torch.float32, kind, "")
            found.append(OpCase(f"{name}-{kind}", make))
    found.append(OpCase("strided", partial(_make, (5, 9), torch.float32, "one", "strided")))
    found.append(OpCase("mixed-dtypes", _mixed))
    return found
