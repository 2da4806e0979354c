"""Activations that the ops over channels are tried with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["DTYPES", "SHAPES", "Arrange", "activation", "inside", "tokens_inside"]

Arrange = Callable[[Tensor], Tensor]

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}


def inside(x: Tensor) -> Tensor:
    """channels_last, of images or volumes."""
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=last)


def tokens_inside(x: Tensor) -> Tensor:
    """``[N, C, L]`` whose channels lie innermost, as after a linear layer."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


SHAPES: dict[str, tuple[tuple[int, ...], Arrange | None]] = {
    "empty": ((0, 3, 4, 4), None),
    "no-positions": ((2, 3, 0, 4), None),
    "no-channels": ((2, 0, 4, 4), None),
    "one-channel": ((2, 1, 5, 5), None),
    "one-number": ((1, 1), None),
    "features": ((7, 33), None),
    "tokens": ((2, 9, 12), None),
    "tokens-inside": ((2, 9, 12), tokens_inside),
    "volume": ((2, 3, 3, 4, 5), None),
    "volume-inside": ((2, 3, 3, 4, 5), inside),
    "strided": ((2, 6, 8, 8), lambda x: x[:, ::2]),
    "permuted": ((2, 3, 8, 6), lambda x: x.transpose(2, 3)),
    "expanded": ((2, 1, 1, 1), lambda x: x.expand(2, 4, 3, 3)),
    "offset": ((3, 5, 7, 5), lambda x: x.flatten()[3:].as_strided((2, 5, 7, 5), (175, 35, 5, 1))),
    "many-channels": ((1, 300, 3, 3), None),
    "many-channels-inside": ((1, 300, 3, 3), inside),
    "few-channels-inside": ((3, 3, 9, 7), inside),
    "large-map": ((1, 2, 61, 47), None),
    "large-map-inside": ((2, 12, 31, 23), inside),
}
"""What is odd about a shape or a memory format, beside dtypes."""


def activation(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    arrange: Arrange | None,
    device: torch.device,
    generator: torch.Generator,
) -> Tensor:
    """Normal numbers, half of them zero; −0.0, NaN, infinities and denormals among them."""
    x = torch.randn(shape, generator=generator).to(dtype)
    x[torch.rand(shape, generator=generator) < 0.5] = 0.0
    denormal = torch.finfo(dtype).smallest_normal / 4
    odd = (-0.0, float("nan"), float("inf"), denormal, -denormal, -float("nan"), -float("inf"))
    for i, value in enumerate(odd):
        x.view(-1)[7 * i :: 97] = value
    x = x.to(device)
    return x if arrange is None else arrange(x)
