"""Calls of gather_channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import GatherPlan, gather_channels
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]

Shape = tuple[int, ...]
Cuts = Mapping[int, Sequence[int]]
Arrange = Callable[[Tensor], Tensor]

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)


def _some(size: int, seed: int = 0, ratio: float = 0.5) -> list[int]:
    """An ascending part of the positions, at least one."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return sorted(order[: max(int(size * ratio), 1)].tolist())


LAYERS: list[tuple[Shape, Cuts]] = [
    ((24, 40, 3, 3), {0: _some(24), 1: _some(40, 1)}),
    ((24, 70, 1, 1), {0: _some(24), 1: _some(70, 2)}),
    ((24,), {0: _some(24)}),
    ((10, 24), {1: _some(24)}),
]
"""A convolution, a 1 × 1, a batch norm's vector and a linear head."""

ODD: list[tuple[str, list[tuple[Shape, Cuts]]]] = [
    ("transposed", [((20, 12, 4, 4), {0: _some(20), 1: _some(12, 1)})]),
    ("depthwise", [((40, 1, 3, 3), {0: _some(40)}), ((40, 1, 7, 7), {0: _some(40, 1)})]),
    ("volume", [((9, 12, 3, 2, 3), {0: _some(9), 1: _some(12, 1)})]),
    ("first-layer", [((16, 3, 7, 7), {0: _some(16)}), ((16, 3, 3, 3), {0: [2], 1: [2]})]),
    ("neither", [((6, 5, 3, 3), {}), ((7,), {}), ((), {})]),
    ("everything", [((6, 5, 3, 3), {0: range(6), 1: range(5)})]),
    ("nothing", [((6, 5, 3, 3), {0: []}), ((6, 5), {1: []}), ((4,), {0: []})]),
    ("empty", [((0, 5, 3, 3), {1: [0, 2]}), ((3, 4, 0, 3), {0: [1, 2]})]),
    ("repeated-unsorted", [((9, 33, 1, 1), {0: [8, 0, 8, 3], 1: [5, 5, 32, 0, 1, 2]})]),
    ("runs", [((40, 30, 1, 1), {0: range(5, 25), 1: [*range(9), *range(20, 30)]})]),
    ("long-runs", [((9, 3, 11, 13), {0: [0, 1, 2, 7], 1: [0, 2]}), ((8, 200), {0: [3, 4, 6]})]),
    ("middle", [((4, 3, 10, 5), {2: [1, 2, 9]}), ((4, 30, 2), {1: _some(30)})]),
    ("last", [((16, 3, 2, 90), {3: _some(90)})]),
    ("first-and-last", [((12, 3, 2, 50), {0: [1, 5, 6], 3: _some(50)})]),
    ("three", [((6, 7, 8), {0: [1, 5], 1: [0, 6, 3], 2: _some(8)})]),
    ("four", [((6, 7, 5, 8), {0: [1, 5], 1: [0, 6, 3], 2: [4, 4], 3: [7, 0]})]),
    ("five-byte-runs", [((20, 31, 5), {0: _some(20), 1: _some(31, 1)})]),
    ("sparse", [((16, 500, 1, 1), {1: [3, 250, 251, 499]})]),
    ("one-channel", [((1, 1, 1, 1), {0: [0], 1: [0]}), ((5, 1, 3, 3), {0: [4], 1: [0]})]),
    ("none", []),
]


def _fill(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Every bit pattern may occur but NaNs', whose comparison is never true."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 256, shape, generator=generator).to(dtype)


def _make(
    layers: Sequence[tuple[Shape, Cuts]],
    dtypes: Sequence[torch.dtype],
    arrange: Arrange | None,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    plan = GatherPlan.of([shape for shape, _ in layers], [cuts for _, cuts in layers])
    tensors = []
    for i, (shape, _) in enumerate(layers):
        tensor = _fill(shape, dtypes[i % len(dtypes)], generator).to(device)
        tensors.append(tensor if arrange is None else arrange(tensor))
    return tensors, plan.index_on(device), list(plan.layout)


def _last(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last_3d) if x.ndim == 5 else x


def _strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 0)[::2]


def _shifted(x: Tensor) -> Tensor:
    """Dense, at an address that is a multiple of the item size alone."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory[1:].view(x.shape).copy_(x)


def _call(
    layers: Sequence[tuple[Shape, Cuts]], tensors: list[Tensor], index: Tensor, layout: list[int]
) -> list[Tensor]:
    return gather_channels(tensors, PLANS[len(layers)])


PLANS = {len(LAYERS): GatherPlan.of([shape for shape, _ in LAYERS], [cuts for _, cuts in LAYERS])}
"""Made once, outside of what is compiled, by the number of tensors."""


def cases() -> list[OpCase]:
    found = []
    for name, arrange in (
        ("contiguous", None),
        ("channels_last", _last),
        ("shifted", _shifted),
    ):
        for dtype in DTYPES if arrange is not _shifted else DTYPES[:2]:
            call = partial(_call, LAYERS) if dtype == torch.float32 else None
            label = str(dtype).removeprefix("torch.")
            found.append(OpCase(f"{label}-{name}", partial(_make, LAYERS, [dtype], arrange), call))
    for name, layers in ODD:
        make = partial(_make, layers, [torch.float32], None)
        found.append(OpCase(name, make))
        if any(len(shape) in (4, 5) for shape, _ in layers):
            make = partial(_make, layers, [torch.float16], _last)
            found.append(OpCase(f"{name}-channels_last-fp16", make))
    found.append(OpCase("mixed-dtypes", partial(_make, LAYERS * 3, DTYPES[:-1], None)))
    found.append(OpCase("many", partial(_make, LAYERS * 100, [torch.float32], None)))
    found.append(OpCase("strided", partial(_make, LAYERS, [torch.float32], _strided)))
    wide = [((64, 2048, 1, 1), {0: _some(64), 1: _some(2048, 1)})] * 8
    found.append(OpCase("wide", partial(_make, wide, [torch.float32], None)))
    return found
