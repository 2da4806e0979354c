"""Calls of resized_crop."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import resized_crop
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Box = tuple[int, int, int, int, int]

SIZES = ((20, 31), (9, 5), (47, 40), (1, 1), (16, 16))
"""Heights and widths of the images of a set."""

BOXES: tuple[tuple[int, Box], ...] = (
    (0, (3, 5, 12, 17, 0)),
    (2, (0, 0, 47, 40, 1)),
    (1, (2, 1, 7, 4, 1)),
    (3, (0, 0, 1, 1, 0)),
)
"""Images and their parts: shrunk, enlarged, of one pixel."""


def _make(
    boxes: tuple[tuple[int, Box], ...],
    size: int,
    dtype: torch.dtype,
    channels_last: bool,
    strided: bool,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    sizes = torch.tensor(SIZES, dtype=torch.int32)
    lengths = 3 * sizes.long().prod(1)
    pixels = torch.randint(0, 256, (int(lengths.sum()),), generator=generator).to(torch.uint8)
    images = torch.tensor([image for image, _ in boxes], dtype=torch.int64)
    parts = torch.tensor([box for _, box in boxes], dtype=torch.int32).view(-1, 5)
    mean = 100 + 50 * torch.rand(3, generator=generator)
    std = 40 + 40 * torch.rand(3, generator=generator)
    if strided:
        pixels = pixels.repeat_interleave(2)[::2]
    return (
        pixels.to(device),
        (lengths.cumsum(0) - lengths).to(device),
        sizes.to(device),
        images.to(device),
        parts.to(device),
        size,
        mean.to(device),
        std.to(device),
        dtype,
        channels_last,
    )


def _call(
    pixels: Tensor,
    starts: Tensor,
    sizes: Tensor,
    images: Tensor,
    boxes: Tensor,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return resized_crop(
        pixels,
        starts,
        sizes,
        images,
        boxes,
        size=size,
        mean=mean,
        std=std,
        dtype=dtype,
        channels_last=channels_last,
    )


def cases() -> list[OpCase]:
    found = []
    for label, dtype in DTYPES.items():
        for last in (False, True):
            name = f"{label}-channels_last" if last else label
            call = _call if dtype == torch.float32 else None
            found.append(OpCase(name, partial(_make, BOXES, 16, dtype, last, False), call))
    odd: tuple[tuple[str, tuple[tuple[int, Box], ...], int], ...] = (
        ("odd", BOXES, 13),
        ("one-pixel", BOXES, 1),
        ("small", BOXES, 3),
        ("as-it-is", ((4, (0, 0, 16, 16, 0)), (4, (0, 0, 16, 16, 1))), 16),
        ("long-and-narrow", ((0, (4, 0, 1, 31, 1)), (2, (0, 7, 47, 1, 0))), 10),
        ("again", ((0, (0, 0, 20, 31, 0)),) * 3, 8),
        ("empty-batch", (), 8),
    )
    for name, boxes, size in odd:
        for last in (False, True):
            full = f"{name}-channels_last" if last else name
            found.append(OpCase(full, partial(_make, boxes, size, torch.float32, last, False)))
    strided = partial(_make, BOXES, 9, torch.float32, True, True)
    return [*found, OpCase("strided-set", strided, _call)]
