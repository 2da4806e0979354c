"""Checks of arguments that several ops share: expected, then got."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "check_activation",
    "check_counter",
    "check_eps",
    "check_tensor",
    "check_type",
    "check_vector",
    "differentiated",
    "listed",
]


def check_type(name: str, given: object, wanted: type | tuple[type, ...], said: str) -> None:
    """``given`` is of a type; ``said`` is that type in words."""
    if not isinstance(given, wanted):
        raise TypeError(f"{name}: expected {said}, got {type(given).__name__}")


def check_tensor(name: str, tensor: object) -> None:
    """``tensor`` is one."""
    check_type(name, tensor, Tensor, "a tensor")


def check_eps(eps: float) -> None:
    """``eps`` is a number of at least 0."""
    check_type("eps", eps, Real, "a number")
    if not eps >= 0:
        raise ValueError(f"eps: expected 0 or more, got {eps}")


def listed(name: str, tensors: Iterable[Tensor] | Tensor) -> list[Tensor]:
    """The tensors as a list. One alone would pass for a sequence of them."""
    if isinstance(tensors, Tensor):
        raise TypeError(f"{name}: expected a list of tensors, got one tensor")
    # An abstract class is asked for 0.3 µs.
    if type(tensors) not in (list, tuple):
        check_type(name, tensors, Iterable, "a list of tensors")
    return list(tensors)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a call's derivative is asked for, so that autograd has to see it.

    In forward mode, which no op has, autograd then says so; a tangent would be lost otherwise.
    """
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_activation(x: Tensor) -> None:
    """``x`` is a floating ``[N, C, ...]``."""
    check_tensor("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x: expected [N, C, ...], got shape {list(x.shape)}")


def check_counter(counter: Tensor, x: Tensor) -> None:
    """``counter`` is int64 ``[C]``, contiguous, and where ``x`` is."""
    check_tensor("counter", counter)
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
