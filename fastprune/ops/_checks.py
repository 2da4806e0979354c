"""Checks of arguments that several ops share: expected, then got."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_activation", "check_counter", "check_vector"]


def check_activation(x: Tensor) -> None:
    """``x`` is a floating ``[N, C, ...]``."""
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x: expected [N, C, ...], got shape {list(x.shape)}")


def check_counter(counter: Tensor, x: Tensor) -> None:
    """``counter`` is int64 ``[C]``, contiguous, and where ``x`` is."""
    if counter.dtype != torch.int64:
        raise TypeError(f"counter: expected int64, got {counter.dtype}")
    check_vector("counter", counter, x)


def check_vector(name: str, vector: Tensor, x: Tensor) -> None:
    """``vector`` is a contiguous ``[C]`` where ``x`` ``[N, C, ...]`` is."""
    if vector.shape != (x.shape[1],):
        raise ValueError(
            f"{name}: expected shape [{x.shape[1]}], one entry a channel, got {list(vector.shape)}"
        )
    if vector.device != x.device:
        raise ValueError(f"{name}: expected device {x.device}, as x has, got {vector.device}")
    if not vector.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, got stride {vector.stride()}")
