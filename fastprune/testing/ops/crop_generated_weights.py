"""Calls of crop_generated_weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprune.ops import crop_generated_weights
from fastprune.testing.ops._case import OpCase

__all__ = ["cases"]


def _make(
    candidates: int,
    shape: tuple[int, int, int, int],
    units: int,
    dtype: torch.dtype,
    options: frozenset[str],
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, ...]:
    """Layers as ``nn.Linear`` starts them; widths of all sizes, the first candidate's the whole.

    ``options``: ``"no-bias"``, ``"strided"`` (FC2 and the biases lie with gaps), ``"all-inputs"``
    (none is cropped).
    """
    features = 3
    rows = shape[0] * shape[1] * shape[2] * shape[3]

    def draw(*size: int) -> Tensor:
        # A prime number of rows, again and again: no offset that is wrong finds the right row.
        first = min(size[0], 100003)
        x = 2 * torch.rand(first, *size[1:], generator=generator) - 1
        x = (x / size[-1] ** 0.5).to(device, dtype)
        x = x.repeat(-(-size[0] // first), *[1] * (x.ndim - 1))[: size[0]]
        return torch.stack([x, x], -1)[..., 0] if "strided" in options else x

    def widths(most: int) -> list[int]:
        drawn = torch.randint(1, most + 1, (candidates,), generator=generator).tolist()
        return [most, *drawn][:candidates]

    encodings = torch.rand(candidates, features, generator=generator).to(device, dtype)
    inputs = [shape[1]] * candidates if "all-inputs" in options else widths(shape[1])
    fc1_weight, fc2_weight = draw(units, features), draw(rows, units)
    outputs = widths(shape[0])
    return (
        encodings,
        fc1_weight,
        None if "no-bias" in options else draw(units),
        fc2_weight,
        None if "no-bias" in options else draw(rows),
        list(shape),
        outputs,
        inputs,
    )


def _call(
    encodings: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    shape: list[int],
    out_channels: list[int],
    in_channels: list[int],
) -> list[Tensor]:
    return crop_generated_weights(
        encodings,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        shape=shape,
        out_channels=out_channels,
        in_channels=in_channels,
    )


def cases() -> list[OpCase]:
    found = []
    for label, dtype in (
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp64", torch.float64),
    ):
        for candidates, shape, units in (
            (5, (20, 7, 3, 3), 32),
            (19, (9, 70, 1, 1), 64),
            (16, (33, 17, 1, 1), 32),
        ):
            make = partial(_make, candidates, shape, units, dtype, frozenset())
            size = "x".join(str(n) for n in shape)
            call = _call if dtype == torch.float32 else None
            found.append(OpCase(f"{label}-{candidates}-{size}-{units}-units", make, call))
    for name, candidates, shape, units, options in (
        ("one", 1, (8, 5, 3, 3), 32, ()),
        ("none", 0, (8, 5, 3, 3), 32, ()),
        ("forty", 40, (6, 5, 3, 3), 32, ()),
        ("three-units", 4, (7, 9, 3, 3), 3, ()),
        ("odd-units", 4, (7, 9, 1, 1), 37, ()),
        ("48-units", 17, (5, 40, 1, 1), 48, ()),
        ("300-units", 3, (5, 4, 1, 1), 300, ()),
        ("depthwise", 6, (30, 1, 3, 3), 64, ()),
        ("stem", 5, (16, 3, 7, 7), 32, ("all-inputs",)),
        ("one-weight", 3, (1, 1, 1, 1), 32, ()),
        ("oblong-kernel", 3, (6, 4, 1, 5), 32, ()),
        ("long-rows", 3, (2, 130, 3, 3), 16, ()),
        ("no-bias", 5, (8, 5, 3, 3), 32, ("no-bias",)),
        ("strided", 5, (8, 5, 3, 3), 32, ("strided",)),
    ):
        make = partial(_make, candidates, shape, units, torch.float32, frozenset(options))
        found.append(OpCase(name, make, _call if name in ("one", "depthwise") else None))
    large = partial(_make, 3, (2048, 4200, 3, 3), 32, torch.float16, frozenset({"no-bias"}))
    found.append(OpCase("over-2^31", large, large=True))
    return found
