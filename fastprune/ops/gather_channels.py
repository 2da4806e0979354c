"""The kept channels of many tensors at once: surgery's copy of weights, gradients and momentum."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastprune.ops._checks import check_tensor, check_type, listed
from fastprune.ops._extension import cuda_extension, extension
from fastprune.ops._op import Implementation, define, public

__all__ = ["GatherPlan", "Positions", "gather_channels"]

Positions: TypeAlias = "Tensor | NDArray[np.integer[Any]] | Sequence[int]"
"""Kept positions of one dimension, 1-D, whole numbers."""

# The numbers of csrc/gather_channels.h.
CONTIGUOUS, CHANNELS_LAST = 0, 1
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

Part: TypeAlias = "tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]"
"""A result's shape, and (dimension, start, length) of its positions."""


@dataclass(frozen=True, slots=True, eq=False)
class GatherPlan:
    """Which positions of which dimensions are kept, of a list of tensors; `of` makes one.

    One plan serves every list of tensors of its shapes: weights, their gradients, momentum,
    averages of the weights, of any dtype and memory format, on any device.

    Attributes:
        shapes: that the tensors must have.
        kept_shapes: that the results have.
        layout: for each tensor its number of dimensions, its sizes, how many dimensions have
            positions, and of each of those the dimension, and start and length in ``index``.
        index: int64, all positions one after another.
    """

    shapes: tuple[tuple[int, ...], ...]
    kept_shapes: tuple[tuple[int, ...], ...]
    layout: tuple[int, ...] = field(repr=False)
    index: Tensor = field(repr=False)
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        shapes: Sequence[Sequence[int]], indices: Sequence[Mapping[int, Positions]]
    ) -> GatherPlan:
        """Checks the positions, once for all calls.

        Args:
            shapes: of the tensors.
            indices: for each tensor, by dimension, the positions to keep, in the order that the
                result shall have; repeated ones are copied again. A dimension that is not named
                stays whole, and a tensor without any is copied. Positions that are a tensor on a
                GPU are waited for.

        Raises:
            TypeError: positions are not whole numbers.
            ValueError: there are more or fewer indices than shapes, or positions are not 1-D or
                out of range.
        """
        for i, cuts in enumerate(indices):
            check_type(f"indices[{i}]", cuts, Mapping, "a mapping of dimensions to positions")
        for i, shape in enumerate(shapes):
            for size in shape:
                check_type(f"shapes[{i}]", size, Integral, "whole numbers")
        if len(shapes) != len(indices):
            raise ValueError(
                f"indices: expected one mapping a tensor, {len(shapes)}, got {len(indices)}"
            )
        found: list[NDArray[np.int64]] = []
        # One object often serves many tensors: a convolution, its batch norm and what reads it.
        # It is known by its id, so it is held meanwhile.
        seen: dict[tuple[int, int], tuple[int, int] | None] = {}
        held: list[Positions] = []
        length = 0
        layout: list[int] = []
        kept_shapes: list[tuple[int, ...]] = []
        for i, (shape, cuts) in enumerate(zip(shapes, indices, strict=True)):
            kept = list(shape)
            words: list[int] = []
            for dim, positions in sorted(cuts.items()):
                if not 0 <= dim < len(shape):
                    raise ValueError(
                        f"indices[{i}]: expected dimensions below {len(shape)}, got {dim}"
                    )
                key = (id(positions), shape[dim])
                if key not in seen:
                    held.append(positions)
                    array = _positions(positions, shape[dim], f"indices[{i}][{dim}]")
                    seen[key] = None
                    if not np.array_equal(array, np.arange(shape[dim])):
                        seen[key] = (length, len(array))
                        found.append(array)
                        length += len(array)
                place = seen[key]
                if place is not None:
                    kept[dim] = place[1]
                    words += (dim, *place)
            kept_shapes.append(tuple(kept))
            layout += (len(kept), *shape, len(words) // 3, *words)
        index = torch.from_numpy(np.concatenate(found)) if found else _NOWHERE
        return GatherPlan(
            tuple(tuple(shape) for shape in shapes), tuple(kept_shapes), tuple(layout), index
        )

    def index_on(self, device: torch.device) -> Tensor:
        """The positions on a device, copied there when first asked for."""
        if device == self.index.device:
            return self.index
        if device not in self._copies:
            self._copies[device] = self.index.to(device)
        return self._copies[device]


# A device that a ``with`` block sets is none of its.
_NOWHERE = torch.empty(0, dtype=torch.int64, device="cpu")


def _positions(positions: Positions, size: int, name: str) -> NDArray[np.int64]:
    if isinstance(positions, Tensor):
        if positions.is_meta:
            raise ValueError(f"{name}: expected positions with values, got a meta tensor")
        array: NDArray[Any] = positions.detach().cpu().numpy()
    else:
        array = np.asarray(positions)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected 1-D positions, got shape {list(array.shape)}")
    # An empty list has no dtype of its own.
    if array.dtype.kind == "b":
        raise TypeError(f"{name}: expected whole numbers, got a mask; its .nonzero() has them")
    if len(array) and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected whole numbers, got {array.dtype}")
    wrong = array[(array < 0) | (array >= size)]
    if len(wrong):
        raise ValueError(f"{name}: expected positions of 0 to {size - 1}, got {wrong[0]}")
    return array.astype(np.int64)


def _parts(layout: Sequence[int]) -> tuple[Part, ...]:
    return _parse(tuple(layout))


@functools.lru_cache(maxsize=64)
def _parse(layout: tuple[int, ...]) -> tuple[Part, ...]:
    """What the layout says of each tensor; kept, since a plan is used again: 1 µs a tensor."""
    parts = []
    at = 0
    while at < len(layout):
        ndim = layout[at]
        shape = list(layout[at + 1 : at + 1 + ndim])
        at += 1 + ndim
        end = at + 1 + 3 * layout[at]
        cuts = tuple((layout[w], layout[w + 1], layout[w + 2]) for w in range(at + 1, end, 3))
        for dim, _, length in cuts:
            shape[dim] = length
        at = end
        parts.append((tuple(shape), cuts))
    return tuple(parts)


def _format(tensor: Tensor) -> int | None:
    """The memory format that a tensor and its result have; None: strided, a result is contiguous.

    What is both, a 1 × 1 convolution's weight for instance, counts as contiguous.
    """
    if tensor.is_contiguous():
        return CONTIGUOUS
    last = LAST.get(tensor.ndim)
    if last is not None and tensor.is_contiguous(memory_format=last):
        return CHANNELS_LAST
    return None


def _empty(tensor: Tensor, shape: Sequence[int], form: int | None) -> Tensor:
    memory = LAST[tensor.ndim] if form == CHANNELS_LAST else torch.contiguous_format
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory)


def _reference(tensors: Sequence[Tensor], index: Tensor, layout: Sequence[int]) -> list[Tensor]:
    results = []
    for tensor, (shape, cuts) in zip(tensors, _parts(layout), strict=True):
        kept = tensor
        for dim, start, length in cuts:
            kept = kept.index_select(dim, index[start : start + length])
        results.append(_empty(tensor, shape, _format(tensor)).copy_(kept))
    return results


def _fake(tensors: Sequence[Tensor], index: Tensor, layout: Sequence[int]) -> list[Tensor]:
    return [
        _empty(tensor, shape, _format(tensor))
        for tensor, (shape, _) in zip(tensors, _parts(layout), strict=True)
    ]


def _arguments(
    tensors: Sequence[Tensor], index: Tensor, layout: Sequence[int]
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Results without content, and what the compiled functions take first."""
    formats = [_format(tensor) for tensor in tensors]
    results = [
        _empty(tensor, shape, form)
        for tensor, (shape, _), form in zip(tensors, _parts(layout), formats, strict=True)
    ]
    return results, (
        [t.data_ptr() for t in tensors],
        [t.data_ptr() for t in results],
        formats,
        [t.element_size() for t in tensors],
        index.data_ptr(),
        layout,
    )


def _cpp() -> Callable[..., list[Tensor]]:
    gather = extension().gather_channels

    def run(tensors: Sequence[Tensor], index: Tensor, layout: Sequence[int]) -> list[Tensor]:
        results, arguments = _arguments(tensors, index, layout)
        gather(*arguments, torch.get_num_threads())
        return results

    return run


def _cuda() -> Callable[..., list[Tensor]]:
    gather = cuda_extension().gather_channels_cuda

    def run(tensors: Sequence[Tensor], index: Tensor, layout: Sequence[int]) -> list[Tensor]:
        results, arguments = _arguments(tensors, index, layout)
        stream = torch.cuda.current_stream(index.device).cuda_stream
        gather(*arguments, index.device.index, stream)
        return results

    return run


def _strided(tensors: Sequence[Tensor], index: Tensor, layout: Sequence[int]) -> str | None:
    for i, tensor in enumerate(tensors):
        if _format(tensor) is None:
            return (
                f"tensors[{i}]: strides {tuple(tensor.stride())} are neither contiguous nor "
                "channels_last"
            )
    return None


def _unsupported_cuda(
    tensors: Sequence[Tensor], index: Tensor, layout: Sequence[int]
) -> str | None:
    for i, (_, cuts) in enumerate(_parts(layout)):
        if len(cuts) > 2:
            return f"tensors[{i}]: positions of {len(cuts)} dimensions, the kernel takes 2"
    return _strided(tensors, index, layout)


_op = define(
    "gather_channels",
    "(Tensor[] tensors, Tensor index, int[] layout) -> Tensor[]",
    fake=_fake,
    reference=_reference,
    implementations=[
        Implementation("cuda", "cuda", _cuda, _unsupported_cuda),
        Implementation("cpp", "cpu", _cpp, _strided),
    ],
)


@public
def gather_channels(tensors: Sequence[Tensor], plan: GatherPlan) -> list[Tensor]:
    """The kept positions of every tensor: ``w[out_kept][:, in_kept]`` of each, all in one pass.

    Each result has memory of its own, and the tensor's dtype, device and memory format:
    channels_last stays so, what is neither that nor contiguous comes back contiguous. Gradients do
    not flow through: results do not require any. Nothing is waited for on a GPU, once the plan has
    been used there.

    Args:
        tensors: of the plan's shapes, on one device; dtypes may differ.
        plan: what is kept.

    Raises:
        TypeError: one is no tensor.
        ValueError: number, shapes or devices of the tensors are not as above.
    """
    tensors = listed("tensors", tensors)
    check_type("plan", plan, GatherPlan, "a GatherPlan")
    if len(tensors) != len(plan.shapes):
        raise ValueError(
            f"tensors: expected {len(plan.shapes)}, as the plan has, got {len(tensors)}"
        )
    if not tensors:
        return []
    check_tensor("tensors[0]", tensors[0])
    device = tensors[0].device
    for i, (tensor, shape) in enumerate(zip(tensors, plan.shapes, strict=True)):
        check_tensor(f"tensors[{i}]", tensor)
        if tensor.shape != shape:
            raise ValueError(
                f"tensors[{i}]: expected shape {list(shape)}, got {list(tensor.shape)}"
            )
        if tensor.device != device:
            raise ValueError(
                f"tensors[{i}]: expected device {device}, as tensors[0] has, got {tensor.device}"
            )
    with torch.no_grad():
        results: list[Tensor] = _op(tensors, plan.index_on(device), list(plan.layout))
    return results
