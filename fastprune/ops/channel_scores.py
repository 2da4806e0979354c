"""Σ|w| and Σw² of a weight by channel, over its out and its in side, in one read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastprune.ops._checks import check_tensor, listed
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._layout import layout_of, not_dense
from fastprune.ops._op import Implementation, define, public

__all__ = ["ChannelScores", "channel_scores", "channel_scores_of"]


class ChannelScores(NamedTuple):
    """Sums over a weight ``[O, I, ...]``: float32, of a float64 weight float64.

    Attributes:
        out_abs: Σ|w| of each out channel, ``[O]``.
        out_square: Σw² of each out channel, ``[O]``.
        in_abs: Σ|w| of each in channel, ``[I]``.
        in_square: Σw² of each in channel, ``[I]``.
    """

    out_abs: Tensor
    out_square: Tensor
    in_abs: Tensor
    in_square: Tensor


def _sizes(weight: Tensor) -> list[int]:
    """Of the four vectors; a vector has no in side."""
    channels = weight.shape[1] if weight.ndim > 1 else 0
    return [weight.shape[0], weight.shape[0], channels, channels]


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain(weight: Tensor) -> list[Tensor]:
    wide = weight.to(_accumulated(weight.dtype))
    values = [wide.abs(), wide.square()]
    if weight.ndim == 1:
        return values
    out_dims = list(range(1, weight.ndim))
    in_dims = [0, *range(2, weight.ndim)]
    return [v.sum(dims) for dims in (out_dims, in_dims) for v in values]


def _reference(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([vector for weight in weights for vector in _plain(weight)])


def _empty(weights: Sequence[Tensor]) -> Tensor:
    """The vectors of all weights, one after another."""
    total = sum(sum(_sizes(weight)) for weight in weights)
    return weights[0].new_empty(total, dtype=_accumulated(weights[0].dtype))


def _cpp() -> Callable[[Sequence[Tensor]], Tensor]:
    add_up = extension().channel_scores

    def run(weights: Sequence[Tensor]) -> Tensor:
        out = _empty(weights)
        threads = torch.get_num_threads()
        address = out.data_ptr()
        for weight in weights:
            layout = layout_of(weight)
            add_up(
                weight.data_ptr(),
                address,
                DTYPES[weight.dtype],
                layout.outer,
                layout.channels,
                layout.inner,
                layout.channels_last,
                threads,
            )
            address += 2 * (layout.outer + layout.channels) * out.element_size()
        return out

    return run


def _triton() -> Callable[[Sequence[Tensor]], Tensor]:
    from fastprune.kernels.triton.channel_scores import channel_scores

    def run(weights: Sequence[Tensor]) -> Tensor:
        out = _empty(weights)
        channel_scores(weights, out)
        return out

    return run


def _unsupported_weight(weight: Tensor) -> str | None:
    if weight.dtype not in DTYPES:
        return f"dtype {weight.dtype}"
    if weight.ndim < 2:
        return "a vector has nothing to add up"
    return None if weight.is_contiguous() else not_dense(weight)


def _unsupported(weights: Sequence[Tensor]) -> str | None:
    reasons = (_unsupported_weight(weight) for weight in weights)
    return next((reason for reason in reasons if reason is not None), None)


def _unsupported_triton(weights: Sequence[Tensor]) -> str | None:
    if weights[0].dtype == torch.float64:
        return "dtype torch.float64"
    return _unsupported(weights)


_op = define(
    "channel_scores",
    "(Tensor[] weights) -> Tensor",
    fake=_empty,
    reference=_reference,
    implementations=[
        Implementation("triton", "cuda", _triton, _unsupported_triton),
        Implementation("cpp", "cpu", _cpp, _unsupported),
    ],
)


@public
def channel_scores(weight: Tensor) -> ChannelScores:
    """Σ|w| and Σw² of each out and each in channel of a weight: what L1 and L2 criteria rank by.

    Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017. Sums are accumulated in
    float32, of float64 weights in float64, in an order that does not depend on the number of
    threads. Not differentiable: the weight is detached.

    Args:
        weight: ``[O, I, ...]``, any floating dtype; read once where it is contiguous or
            channels_last. ``[O]`` (a bias, a scale) has no in side: its two vectors are empty, and
            the others |w| and w² themselves.

    Raises:
        TypeError: the weight is not floating.
        ValueError: it has no dimension.
    """
    check_tensor("weight", weight)
    return _all([weight])[0]


@public
def channel_scores_of(weights: Sequence[Tensor]) -> list[ChannelScores]:
    """:func:`channel_scores` of many weights, in their order.

    Weights of one device and one dtype are one call of the op: on a GPU two or three launches in
    all, where each weight alone would take two.

    Args:
        weights: as :func:`channel_scores` takes them.

    Raises:
        TypeError: a weight is not floating, or no tensor; or a tensor is given for the list.
        ValueError: one has no dimension.
    """
    return _all(listed("weights", weights))


def _all(weights: Sequence[Tensor]) -> list[ChannelScores]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, weight in enumerate(weights):
        name = "weight" if len(weights) == 1 else f"weights[{place}]"
        check_tensor(name, weight)
        if not weight.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {weight.dtype}")
        if weight.ndim == 0:
            raise ValueError(f"{name}: expected [O, I, ...] or [O], got a single number")
        # One that kernels do not take must not keep the others from them.
        key = weight.device, weight.dtype, _unsupported_weight(weight) is None
        groups.setdefault(key, []).append(place)
    found: dict[int, ChannelScores] = {}
    for places in groups.values():
        members = [weights[place].detach() for place in places]
        sizes = [size for weight in members for size in _sizes(weight)]
        vectors = _op(members).split(sizes)
        for i, place in enumerate(places):
            found[place] = ChannelScores(*vectors[4 * i : 4 * i + 4])
    return [found[place] for place in range(len(weights))]
