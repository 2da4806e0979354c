"""ReLU and the zeros of its output by channel, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastprune.ops._checks import check_activation, check_counter, differentiated
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._layout import layout_of
from fastprune.ops._op import Implementation, Kernel, define, public
from fastprune.ops.zero_count import add_zeros, not_supported

__all__ = ["relu_zero_count"]


def _reference(x: Tensor, counter: Tensor) -> Tensor:
    y = torch.relu(x)
    add_zeros(y, counter)
    return y


def _fake(x: Tensor, counter: Tensor) -> Tensor:
    return torch.empty_like(x)


def _cpp() -> Kernel:
    rectify = extension().relu_zero_count

    def run(x: Tensor, counter: Tensor) -> Tensor:
        layout = layout_of(x)
        y = torch.empty_like(x)
        rectify(
            x.data_ptr(),
            y.data_ptr(),
            counter.data_ptr(),
            DTYPES[x.dtype],
            layout.outer,
            layout.channels,
            layout.inner,
            layout.channels_last,
            torch.get_num_threads(),
        )
        return y

    return run


def _triton() -> Kernel:
    from fastprune.kernels.triton.relu_zero_count import relu_zero_count

    kernel: Kernel = relu_zero_count
    return kernel


_op = define(
    "relu_zero_count",
    "(Tensor x, Tensor(a!) counter) -> Tensor",
    fake=_fake,
    reference=_reference,
    implementations=[
        Implementation("triton", "cuda", _triton, not_supported),
        Implementation("cpp", "cpu", _cpp, not_supported),
    ],
)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counter: Tensor) -> Tensor:
        y: Tensor = _op(x, counter)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0), None


@public
def relu_zero_count(x: Tensor, counter: Tensor) -> Tensor:
    """``relu(x)``, whose zeros are added to a counter in the same pass.

    NaN stays NaN and is not counted; −0.0 is. Gradients go to ``x`` as those of ``torch.relu``.

    Args:
        x: ``[N, C, ...]``, any floating dtype; read once where it is contiguous or channels_last.
        counter: int64 ``[C]`` on the same device, contiguous; the zeros of ``y[:, c]`` are added
            to ``counter[c]`` in place.

    Returns:
        The activation, of the shape, dtype and memory format of ``x``.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: shapes or devices are not.
    """
    check_activation(x)
    check_counter(counter, x)
    if differentiated(x):
        y: Tensor = _Function.apply(x, counter)
        return y
    y = _op(x, counter)
    return y
