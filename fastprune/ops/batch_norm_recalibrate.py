"""Batch norm with the batch's own statistics, which are merged into those of all batches so far.

Merging: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastprune.ops._checks import (
    check_activation,
    check_eps,
    check_tensor,
    check_type,
    check_vector,
)
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._layout import not_dense
from fastprune.ops._moments import Moments, batch_moments, merged
from fastprune.ops._op import Implementation, define, public

__all__ = ["batch_norm_recalibrate"]

Kernel = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, float, bool],
    Tensor,
]


def _reference(
    x: Tensor,
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    result = torch.empty_like(x)
    if x.numel() == 0:
        return result
    batch_mean, batch_m2 = batch_moments(x)
    values = x.numel() // x.shape[1]
    total = count + values
    both = merged(count, mean, m2, values / total.double(), batch_mean, batch_m2)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = [1, -1] + [1] * (x.ndim - 2)
    # The mean in two parts: rounded to x's arithmetic, and what that took from it.
    rounded = batch_mean.to(wide)
    y = x.to(wide) - rounded.view(shape) - (batch_mean - rounded).to(wide).view(shape)
    y *= (batch_m2 / values + eps).rsqrt().to(wide).view(shape)
    if weight is not None:
        y *= weight.to(wide).view(shape)
    if bias is not None:
        y += bias.to(wide).view(shape)
    if mask is not None:
        y *= mask.to(wide).view(shape)
    count.copy_(total)
    mean.copy_(both[0])
    m2.copy_(both[1])
    return result.copy_(y.relu_() if relu else y)


def _fake(
    x: Tensor,
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    return torch.empty_like(x)


def _cpp() -> Kernel:
    compute = extension().batch_norm_recalibrate

    def run(
        x: Tensor,
        count: Tensor,
        mean: Tensor,
        m2: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mask: Tensor | None,
        eps: float,
        relu: bool,
    ) -> Tensor:
        result = torch.empty_like(x)
        outer, channels = x.shape[0], x.shape[1]
        inner = x.numel() // max(outer * channels, 1)
        given = (weight, bias, mask)
        wide = any(v is not None and v.dtype != torch.float32 for v in given)
        # Kept until the call is over.
        vectors = [v.double() if wide and v is not None else v for v in given]
        compute(
            x.data_ptr(),
            result.data_ptr(),
            count.data_ptr(),
            mean.data_ptr(),
            m2.data_ptr(),
            *[0 if v is None else v.data_ptr() for v in vectors],
            wide,
            DTYPES[x.dtype],
            outer,
            channels,
            inner,
            # Dense either way; one position an image makes rows of channels, too.
            inner == 1 or not x.is_contiguous(),
            eps,
            relu,
            torch.get_num_threads(),
        )
        return result

    return run


def _triton() -> Kernel:
    from fastprune.kernels.triton.batch_norm_recalibrate import batch_norm_recalibrate

    kernel: Kernel = batch_norm_recalibrate
    return kernel


def _unsupported(x: Tensor, *others: object) -> str | None:
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype}"
    return not_dense(x)


def _unsupported_by_triton(x: Tensor, *others: object) -> str | None:
    if x.dtype == torch.float64:
        return "it accumulates in float32, and x is float64"
    return _unsupported(x)


_op = define(
    "batch_norm_recalibrate",
    "(Tensor x, Tensor(a!) count, Tensor(b!) mean, Tensor(c!) m2, Tensor? weight, Tensor? bias, "
    "Tensor? mask, float eps, bool relu) -> Tensor",
    fake=_fake,
    reference=_reference,
    implementations=[
        Implementation("triton", "cuda", _triton, _unsupported_by_triton),
        Implementation("cpp", "cpu", _cpp, _unsupported),
    ],
)


@public
def batch_norm_recalibrate(
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    mask: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Normalises a batch with its own mean and biased variance, and keeps count of its moments.

    The result is that of ``F.batch_norm(training=True)``. What replaces the running averages is
    exact: after any number of batches ``moments`` holds the mean and the variance of all values,
    as if they had come in one batch. Sums run in float32 (float64 for float64 ``x``) over
    deviations from a mean, so data far from zero lose nothing; they do not depend on the number of
    threads.

    Recalibration takes no gradients, and none are given: with gradient mode on, inputs that
    require them are refused rather than cut off silently.

    Args:
        x: ``[N, C, ...]``, float32, float16, bfloat16 or float64.
        moments: on the same device; the batch is merged into them in place.
        weight: ``[C]``, any floating dtype; None is 1.
        bias: ``[C]``, any floating dtype; None is 0.
        eps: added to the variance.
        mask: ``[C]``, any dtype, of 0 and 1: the result is multiplied by it.
        relu: whether negative results become 0.

    Returns:
        Like ``x`` in shape, dtype and memory format. An empty batch gives an empty one, and leaves
        the moments alone.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: shapes, devices or eps are not, the batch has one value a channel, or gradients
            would be needed.
    """
    check_activation(x)
    check_type("moments", moments, Moments, "Moments")
    check_type("relu", relu, bool, "True or False")
    check_eps(eps)
    check_vector("moments", moments.mean, x)
    for name, vector in (("weight", weight), ("bias", bias), ("mask", mask)):
        if vector is not None:
            check_tensor(name, vector)
            if name != "mask" and not vector.is_floating_point():
                raise TypeError(f"{name}: expected a floating dtype, got {vector.dtype}")
            check_vector(name, vector, x)
    if x.numel() == x.shape[1] != 0:
        raise ValueError(
            f"x: expected more than 1 value per channel, got shape {list(x.shape)}: one value has "
            "no variance"
        )
    if torch.is_grad_enabled():
        moved = (("moments", moments.mean), ("moments", moments.m2))
        for name, given in (("x", x), ("weight", weight), ("bias", bias), *moved):
            if given is not None and given.requires_grad:
                raise ValueError(
                    f"{name}: expected no gradient to be needed, got requires_grad=True; call "
                    "this under torch.no_grad()"
                )
    count, mean, m2 = moments.count, moments.mean, moments.m2
    return _op(x, count, mean, m2, weight, bias, mask, float(eps), relu)  # type: ignore[no-any-return]
