"""Batch norm of inference, ReLU, and the zeros of the output by channel, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastprune.ops._checks import (
    check_activation,
    check_counter,
    check_eps,
    check_tensor,
    check_vector,
    differentiated,
)
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._layout import layout_of
from fastprune.ops._op import Implementation, Kernel, define, public
from fastprune.ops.zero_count import add_zeros, not_supported

__all__ = ["batch_norm_relu_zero_count"]


def _reference(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    counter: Tensor,
    eps: float,
) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x)
    # Past F.batch_norm, which in some versions of torch refuses an eps of 0.
    cudnn = torch.backends.cudnn.enabled
    y = torch.batch_norm(
        x, weight, bias, running_mean, running_var, False, 0.0, eps, cudnn
    ).relu_()
    add_zeros(y, counter)
    kept = torch.empty_like(x)
    # batch_norm keeps fewer memory formats than relu does.
    return y if y.stride() == kept.stride() else kept.copy_(y)


def _fake(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    counter: Tensor,
    eps: float,
) -> Tensor:
    return torch.empty_like(x)


def _cpp() -> Kernel:
    normalise = extension().batch_norm_relu_zero_count

    def run(
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        counter: Tensor,
        eps: float,
    ) -> Tensor:
        layout = layout_of(x)
        y = torch.empty_like(x)
        vectors = _single(x, running_mean, running_var, weight, bias)
        normalise(
            x.data_ptr(),
            y.data_ptr(),
            *(0 if vector is None else vector.data_ptr() for vector in vectors),
            eps,
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


def _single(x: Tensor, *vectors: Tensor | None) -> list[Tensor | None]:
    """Statistics of 16 bits become float32, which others are already."""
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [None if vector is None else vector.to(wanted) for vector in vectors]


def _triton() -> Kernel:
    from fastprune.kernels.triton.batch_norm_relu_zero_count import batch_norm_relu_zero_count

    kernel: Kernel = batch_norm_relu_zero_count
    return kernel


def _not_by_triton(x: Tensor, *others: object) -> str | None:
    """As `not_supported`; the kernel computes in float32."""
    return "dtype torch.float64" if x.dtype == torch.float64 else not_supported(x)


_op = define(
    "batch_norm_relu_zero_count",
    "(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight, Tensor? bias, "
    "Tensor(a!) counter, float eps) -> Tensor",
    fake=_fake,
    reference=_reference,
    implementations=[
        Implementation("triton", "cuda", _triton, _not_by_triton),
        Implementation("cpp", "cpu", _cpp, not_supported),
    ],
)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        counter: Tensor,
        eps: float,
    ) -> Tensor:
        y: Tensor = _op(x, running_mean, running_var, weight, bias, counter, eps)
        ctx.save_for_backward(x, y, running_mean, running_var, weight)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, running_mean, running_var, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if x.numel() == 0:
            # torch's own divides by the number of values.
            wanted = ((x, needed[0]), (weight, needed[3]), (running_mean, needed[4]))
            none = [torch.zeros_like(like) if wants else None for like, wants in wanted]
            return none[0], None, None, none[1], none[2], None, None
        passed = torch.ops.aten.threshold_backward(grad, y, 0)
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            passed,
            x,
            weight,
            running_mean,
            running_var,
            None,
            None,
            False,
            ctx.eps,
            [needed[0], needed[3], needed[4]],
        )
        return of_x, None, None, of_weight, of_bias, None, None


@public
def batch_norm_relu_zero_count(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    counter: Tensor,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """``y = relu((x − mean) / sqrt(var + eps) · weight + bias)``; counts the zeros of ``y``.

    The statistics are taken as they are, as ``torch.nn.functional.batch_norm`` does outside of
    training. Computed in float32 (float64 for float64); the zeros are those of ``y`` as it is
    stored. NaN stays NaN and is not counted. Gradients go to ``x``, ``weight`` and ``bias``.

    Args:
        x: ``[N, C, ...]``, any floating dtype; read once where it is contiguous or channels_last.
        running_mean: ``[C]``, contiguous, on the same device, in the dtype of ``x`` or, where that
            has 16 bits, float32.
        running_var: as ``running_mean`` and of its dtype.
        weight: as ``running_mean`` and of its dtype; ones if None.
        bias: as ``running_mean`` and of its dtype; zeros if None.
        counter: int64 ``[C]`` on the same device, contiguous; the zeros of ``y[:, c]`` are added
            to ``counter[c]`` in place.
        eps: added to the variance.

    Returns:
        The activation, of the shape, dtype and memory format of ``x``.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: shapes or devices are not.
    """
    check_activation(x)
    check_counter(counter, x)
    vectors = {
        "running_mean": running_mean,
        "running_var": running_var,
        "weight": weight,
        "bias": bias,
    }
    check_eps(eps)
    check_tensor("running_mean", running_mean)
    check_tensor("running_var", running_var)
    given = {name: vector for name, vector in vectors.items() if vector is not None}
    for name, vector in given.items():
        check_tensor(name, vector)
        _check_dtype(name, vector.dtype, x.dtype, running_mean.dtype)
        check_vector(name, vector, x)
    arguments = (x, running_mean, running_var, weight, bias, counter, float(eps))
    if differentiated(x, weight, bias):
        y: Tensor = _Function.apply(*arguments)
        return y
    y = _op(*arguments)
    return y


def _check_dtype(name: str, dtype: torch.dtype, of_x: torch.dtype, of_mean: torch.dtype) -> None:
    """A statistic has the dtype of x or, beside 16 bits, float32; all have the same."""
    if dtype != of_x and not (dtype == torch.float32 and of_x.itemsize == 2):
        also = " or torch.float32" if of_x.itemsize == 2 else ""
        raise TypeError(f"{name}: expected {of_x}{also} beside x of {of_x}, got {dtype}")
    if dtype != of_mean:
        raise TypeError(f"{name}: expected {of_mean}, as running_mean has, got {dtype}")
