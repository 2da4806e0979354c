"""Checks of the arguments of the ops on batch norm scales: expected, then got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from fastprune.ops._checks import check_tensor, check_type

__all__ = [
    "check_gradients",
    "check_lengths",
    "check_scales",
    "check_writable",
    "strength_numbers",
]


def check_scales(scales: list[Tensor]) -> None:
    for i, scale in enumerate(scales):
        check_tensor(f"scales[{i}]", scale)
        if not scale.is_floating_point():
            raise TypeError(f"scales[{i}]: expected a floating dtype, got {scale.dtype}")
        if scale.device != scales[0].device:
            raise ValueError(
                f"scales[{i}]: expected device {scales[0].device}, as scales[0] has, got "
                f"{scale.device}"
            )


def check_gradients(scales: list[Tensor], gradients: list[Tensor]) -> None:
    if len(gradients) != len(scales):
        raise ValueError(
            f"gradients: expected {len(scales)}, one for each scale, got {len(gradients)}"
        )
    for i, (scale, gradient) in enumerate(zip(scales, gradients, strict=True)):
        check_tensor(f"gradients[{i}]", gradient)
        if gradient.dtype != scale.dtype:
            raise TypeError(f"gradients[{i}]: expected {scale.dtype}, got {gradient.dtype}")
        if gradient.shape != scale.shape:
            raise ValueError(
                f"gradients[{i}]: expected shape {list(scale.shape)}, got {list(gradient.shape)}"
            )
        if gradient.device != scale.device:
            raise ValueError(
                f"gradients[{i}]: expected device {scale.device}, got {gradient.device}"
            )
        check_writable(f"gradients[{i}]", gradient)


def check_writable(name: str, tensor: Tensor) -> None:
    """An expanded tensor holds one number for many entries: there is no place to write them."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    if any(size > 1 and stride == 0 for size, stride in sizes):
        raise ValueError(
            f"{name}: expected memory of its own for each entry, got an expanded tensor of "
            f"stride {tensor.stride()}"
        )


def strength_numbers(
    name: str, value: float | Sequence[float] | Tensor
) -> tuple[list[float], Tensor | None]:
    """The numbers and the factors of a strength or a threshold."""
    if isinstance(value, Tensor):
        return [1.0], value
    if type(value) is not float:
        check_type(name, value, (list, tuple, Real), "a number, a list of numbers or a tensor")
    numbers = list(map(float, value)) if isinstance(value, Sequence) else [float(value)]
    # A NaN would hide from min and max, not from the sum. A check of each in turn takes 53 layers
    # as long as the addition itself.
    if numbers and not (min(numbers) >= 0.0 and sum(numbers) < math.inf):
        wrong = [number for number in numbers if not 0.0 <= number < math.inf]
        if wrong:
            raise ValueError(f"{name}: expected finite numbers of at least 0, got {wrong[0]}")
    return numbers, None


def check_lengths(
    name: str, numbers: list[float], factors: Tensor | None, scales: list[Tensor]
) -> None:
    layers = len(scales)
    if len(numbers) not in (1, layers):
        raise ValueError(
            f"{name}: expected one number, or {layers}, one a layer, got {len(numbers)}"
        )
    if factors is None:
        return
    if factors.dtype != torch.float32:
        raise TypeError(f"{name}: expected float32, got {factors.dtype}")
    if factors.ndim > 1 or factors.numel() not in (1, layers):
        raise ValueError(
            f"{name}: expected shape [] or [{layers}], one entry a layer, got "
            f"{list(factors.shape)}"
        )
    if scales and factors.device != scales[0].device:
        raise ValueError(
            f"{name}: expected device {scales[0].device}, as the scales have, got {factors.device}"
        )
    if not factors.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, got stride {factors.stride()}")
