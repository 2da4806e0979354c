"""Activations as kernels see them: dense memory, with the channels outside or inside."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Layout", "dense_layout", "layout_of", "not_dense"]


@dataclass(frozen=True, slots=True)
class Layout:
    """An activation ``[N, C, ...]`` that lies in memory without gaps.

    Attributes:
        outer: N.
        channels: C.
        inner: positions of one channel of one image: the product of the other sizes.
        channels_last: memory is ``[N, inner, C]`` instead of ``[N, C, inner]``.
    """

    outer: int
    channels: int
    inner: int
    channels_last: bool


def dense_layout(x: Tensor) -> Layout | None:
    """How ``x`` ``[N, C, ...]`` lies in memory; None where that is neither of the two ways.

    Where both are true, as for ``[N, C]``, it is the first.
    """
    outer, channels = x.shape[0], x.shape[1]
    inner = math.prod(x.shape[2:])
    if x.is_contiguous():
        return Layout(outer, channels, inner, False)
    if x.movedim(1, -1).is_contiguous():
        return Layout(outer, channels, inner, True)
    return None


def layout_of(x: Tensor) -> Layout:
    """`dense_layout` of what `not_dense` has nothing against."""
    layout = dense_layout(x)
    if layout is None:
        raise ValueError(f"x: expected dense memory, got stride {tuple(x.stride())}")
    return layout


def not_dense(x: Tensor, *others: object) -> str | None:
    """Why a kernel of dense activations does not take ``x``, or None."""
    if dense_layout(x) is None:
        return f"strides {tuple(x.stride())} are neither contiguous nor channels_last"
    return None
