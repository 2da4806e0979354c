"""Calls of crop_flip_normalize."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import crop_flip_normalize
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]

Arrange = Callable[[Tensor], Tensor]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _make(
    shape: tuple[int, int, int, int],
    batch: int,
    padding: int | None,
    dtype: torch.dtype,
    channels_last: bool,
    arrange: Arrange | None,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    """Arguments; a padding of None is a call without boxes."""
    pixels = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    images = torch.randint(0, max(shape[0], 1), (batch,), generator=generator)
    boxes = None
    if padding is not None:
        places = torch.randint(0, 2 * padding + 1, (batch, 2), generator=generator)
        flips = torch.randint(0, 2, (batch, 1), generator=generator)
        boxes = torch.cat([places, flips], 1).to(device, torch.int32)
    mean = 100 + 50 * torch.rand(shape[1], generator=generator)
    std = 40 + 40 * torch.rand(shape[1], generator=generator)
    pixels = pixels.to(device)
    return (
        arrange(pixels) if arrange else pixels,
        images.to(device),
        boxes,
        mean.to(device),
        std.to(device),
        padding or 0,
        dtype,
        channels_last,
    )


def _call(
    pixels: Tensor,
    images: Tensor,
    boxes: Tensor | None,
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return crop_flip_normalize(
        pixels,
        images,
        boxes,
        mean=mean,
        std=std,
        padding=padding,
        dtype=dtype,
        channels_last=channels_last,
    )


def _strided(pixels: Tensor) -> Tensor:
    return pixels.contiguous(memory_format=torch.channels_last)


def cases() -> list[OpCase]:
    found = []
    for label, dtype in DTYPES.items():
        for last in (False, True):
            name = f"{label}-channels_last" if last else label
            call = _call if dtype == torch.float32 else None
            for kind, padding in (("cropped", 4), ("whole", None)):
                make = partial(_make, (7, 3, 32, 32), 5, padding, dtype, last, None)
                found.append(OpCase(f"{name}-{kind}", make, call))
    odd: tuple[tuple[str, tuple[int, int, int, int], int, int | None], ...] = (
        ("one-channel", (5, 1, 28, 28), 4, 2),
        ("one-channel-whole", (5, 1, 28, 28), 4, None),
        ("two-channels", (5, 2, 12, 12), 4, 3),
        ("four-channels", (5, 4, 9, 16), 4, 3),
        ("odd", (3, 3, 13, 11), 9, 3),
        ("odd-whole", (3, 3, 13, 11), 9, None),
        ("narrow", (3, 3, 9, 5), 9, 2),
        ("one-column", (3, 3, 9, 1), 9, 2),
        ("one-pixel", (3, 3, 1, 1), 9, 1),
        ("one-image", (1, 3, 8, 8), 6, 2),
        ("far-out", (3, 3, 10, 9), 20, 30),
        ("no-frame", (4, 3, 8, 17), 6, 0),
        ("many-rows", (2, 3, 70, 61), 3, 5),
        ("many-rows-whole", (2, 3, 70, 61), 3, None),
        ("empty-batch", (3, 3, 8, 8), 0, 2),
        ("empty-set", (0, 3, 8, 8), 0, None),
        ("empty-image", (3, 3, 0, 8), 2, 2),
    )
    for name, shape, batch, padding in odd:
        for label, dtype in DTYPES.items():
            if dtype == torch.float16 and name not in ("odd", "many-rows"):
                continue
            for last in (False, True):
                make = partial(_make, shape, batch, padding, dtype, last, None)
                full = f"{name}-{label}-channels_last" if last else f"{name}-{label}"
                found.append(OpCase(full, make))
    strided = partial(_make, (5, 3, 8, 8), 4, 2, torch.float32, True, _strided)
    return [*found, OpCase("strided-set", strided, _call)]
