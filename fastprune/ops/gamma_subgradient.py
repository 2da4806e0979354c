"""The sparsity penalty s·Σ|γ| on batch norm scales: subgradient, proximal step and sum.

Liu et al., *Learning Efficient Convolutional Networks through Network Slimming*, ICCV 2017. The
scales of a network are many small tensors (ResNet-50: 53 with 26,560 γ together), so a loop over
them spends its time in calls; these ops take them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastprune.ops._checks import differentiated, listed
from fastprune.ops._extension import DTYPES, cuda_extension, extension, reading_tensors
from fastprune.ops._gamma_arguments import (
    check_gradients,
    check_lengths,
    check_scales,
    check_writable,
    strength_numbers,
)
from fastprune.ops._op import Implementation, define, public

__all__ = ["gamma_penalty", "gamma_proximal_", "gamma_subgradient_"]

# s of layer i is strengths[i], or strengths[0] where there is one for all, times factors[i] or
# factors[0] if factors are given. The first are part of the call, the second are read by the
# kernel on the device: a captured CUDA graph sees their present values.


def _each(strengths: Sequence[float], layers: int) -> list[float]:
    """The number of each layer."""
    return list(strengths) * (layers if len(strengths) == 1 else 1)


def _wide(tensor: Tensor) -> torch.dtype:
    """What is calculated in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _subgradient_reference(
    scales: list[Tensor],
    gradients: list[Tensor],
    strengths: Sequence[float],
    factors: Tensor | None,
) -> None:
    signs = [sign.to(_wide(sign)) for sign in torch._foreach_sign(list(scales))]
    if factors is not None:
        each_factor = factors.expand(len(signs)).unbind()
        signs = [s * f.to(s.dtype) for s, f in zip(signs, each_factor, strict=True)]
    # Half precision is calculated in float32 and rounded once.
    sums = [gradient.to(_wide(gradient), copy=True) for gradient in gradients]
    if len(strengths) == 1:
        torch._foreach_add_(sums, signs, alpha=strengths[0])
    else:
        for total, sign, strength in zip(sums, signs, strengths, strict=True):
            total.add_(sign, alpha=strength)
    torch._foreach_copy_(list(gradients), sums)


def _proximal_reference(
    scales: Sequence[Tensor], thresholds: Sequence[float], factors: Tensor | None
) -> None:
    left = [scale.to(_wide(scale)).abs() for scale in scales]
    each = _each(thresholds, len(scales))
    if factors is None:
        torch._foreach_sub_(left, each)
    else:
        each_factor = factors.expand(len(left)).unbind()
        for magnitude, threshold, factor in zip(left, each, each_factor, strict=True):
            magnitude.sub_(factor.to(magnitude.dtype).expand_as(magnitude), alpha=threshold)
    torch._foreach_clamp_min_(left, 0.0)
    signs = torch._foreach_sign(list(scales))
    torch._foreach_copy_(list(scales), [m * s for m, s in zip(left, signs, strict=True)])


def _sum_dtype(scales: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(s.dtype == torch.float64 for s in scales) else torch.float32


def _penalty_reference(scales: Sequence[Tensor]) -> Tensor:
    dtype = _sum_dtype(scales)
    return torch.stack([s.abs().sum(dtype=dtype) for s in scales]).sum()


def _subgradient_fake(
    scales: Sequence[Tensor],
    gradients: Sequence[Tensor],
    strengths: Sequence[float],
    factors: Tensor | None,
) -> None:
    return None


def _proximal_fake(
    scales: Sequence[Tensor], thresholds: Sequence[float], factors: Tensor | None
) -> None:
    return None


def _penalty_fake(scales: Sequence[Tensor]) -> Tensor:
    return scales[0].new_empty((), dtype=_sum_dtype(scales))


def _taken(done: bool) -> Any:
    return None if done else NotImplemented


# These kernels read and check the lists themselves, so that they also run past the dispatcher.


def _cpp_subgradient() -> Callable[..., Any]:
    kernel = reading_tensors(extension()).gamma_subgradient

    def run(*arguments: Any) -> Any:
        return _taken(kernel(*arguments, torch.get_num_threads()))

    return run


def _cpp_proximal() -> Callable[..., Any]:
    kernel = reading_tensors(extension()).gamma_proximal

    def run(*arguments: Any) -> Any:
        return _taken(kernel(*arguments, torch.get_num_threads()))

    return run


def _cpp_penalty() -> Callable[..., Any]:
    kernel = reading_tensors(extension()).gamma_penalty

    def run(scales: list[Tensor]) -> Any:
        total = torch.empty((), dtype=_sum_dtype(scales[:1]))
        done = kernel(scales, total.data_ptr(), torch.get_num_threads())
        return total if done else NotImplemented

    return run


def _cuda_subgradient() -> Callable[..., Any]:
    kernel = reading_tensors(cuda_extension()).gamma_subgradient_cuda
    return lambda *arguments: _taken(kernel(*arguments))


def _cuda_proximal() -> Callable[..., Any]:
    kernel = reading_tensors(cuda_extension()).gamma_proximal_cuda
    return lambda *arguments: _taken(kernel(*arguments))


def _cuda_penalty() -> Callable[..., Any]:
    kernel = reading_tensors(cuda_extension()).gamma_penalty_cuda

    def run(scales: list[Tensor]) -> Any:
        total = torch.empty((), dtype=_sum_dtype(scales[:1]), device=scales[0].device)
        return total if kernel(scales, total.data_ptr()) else NotImplemented

    return run


def _not_plain(scales: list[Tensor], gradients: list[Tensor] | None) -> str | None:
    if extension().gamma_plain(scales, gradients):
        return None
    tensors = [*scales, *(gradients or [])]
    dtypes = sorted({str(t.dtype) for t in tensors})
    if len(dtypes) > 1:
        return f"dtypes {', '.join(dtypes)} in one call"
    if tensors[0].dtype not in DTYPES:
        return f"dtype {dtypes[0]}"
    if not all(t.is_contiguous() for t in tensors):
        return "tensors that are not contiguous"
    return "tensors whose memory it cannot read"


def _too_many(scales: list[Tensor]) -> str | None:
    most = extension().gamma_most_layers(DTYPES[scales[0].dtype])
    if len(scales) > most:
        return f"{len(scales)} layers, and one launch takes {most}"
    if max(s.numel() for s in scales) >= 2**32:
        return "a layer of 2^32 scales or more"
    return None


def _subgradient_unsupported(
    scales: list[Tensor], gradients: list[Tensor], strengths: object, factors: object
) -> str | None:
    return _not_plain(scales, gradients)


def _proximal_unsupported(scales: list[Tensor], thresholds: object, factors: object) -> str | None:
    return _not_plain(scales, None)


def _penalty_unsupported(scales: list[Tensor]) -> str | None:
    return _not_plain(scales, None)


def _on_cuda(unsupported: Callable[..., str | None]) -> Callable[..., str | None]:
    def both(scales: list[Tensor], *others: object) -> str | None:
        return unsupported(scales, *others) or _too_many(scales)

    return both


_subgradient = define(
    "gamma_subgradient_",
    "(Tensor[] scales, Tensor(a!)[] gradients, float[] strengths, Tensor? factors) -> ()",
    fake=_subgradient_fake,
    reference=_subgradient_reference,
    implementations=[
        Implementation(
            "cuda", "cuda", _cuda_subgradient, _on_cuda(_subgradient_unsupported), direct=True
        ),
        Implementation("cpp", "cpu", _cpp_subgradient, _subgradient_unsupported, direct=True),
    ],
)

_proximal = define(
    "gamma_proximal_",
    "(Tensor(a!)[] scales, float[] thresholds, Tensor? factors) -> ()",
    fake=_proximal_fake,
    reference=_proximal_reference,
    implementations=[
        Implementation(
            "cuda", "cuda", _cuda_proximal, _on_cuda(_proximal_unsupported), direct=True
        ),
        Implementation("cpp", "cpu", _cpp_proximal, _proximal_unsupported, direct=True),
    ],
)

_penalty = define(
    "gamma_penalty",
    "(Tensor[] scales) -> Tensor",
    fake=_penalty_fake,
    reference=_penalty_reference,
    implementations=[
        Implementation("cuda", "cuda", _cuda_penalty, _on_cuda(_penalty_unsupported), direct=True),
        Implementation("cpp", "cpu", _cpp_penalty, _penalty_unsupported, direct=True),
    ],
)


def _device(scales: list[Tensor]) -> str:
    """The device type of the first; the kernel looks at the rest."""
    return "cuda" if getattr(scales[0], "is_cuda", False) else "cpu"


class _Penalty(torch.autograd.Function):
    """Σ|γ| with the subgradient sign(γ)."""

    @staticmethod
    def forward(ctx: Any, *scales: Tensor) -> Tensor:
        ctx.save_for_backward(*scales)
        total: Tensor = _penalty(list(scales))
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.sign(scale) * upstream[0].to(scale.dtype) for scale in ctx.saved_tensors
        )


@public
def gamma_subgradient_(
    scales: Sequence[Tensor],
    gradients: Sequence[Tensor],
    strength: float | Sequence[float] | Tensor,
) -> None:
    """Adds s·sign(γ) to the gradient of each scale γ in place, with sign(0) = sign(NaN) = 0.

    Call it after backward, on gradients that are not scaled for AMP any more.

    Args:
        scales: one tensor a layer, usually ``[C]``, any floating dtype, on one device.
        gradients: of the scales, in the same order, each of its scale's shape and dtype; no two of
            them share memory.
        strength: s, at least 0: one number for all layers or one a layer. A float32 tensor of one
            entry or one a layer, where the scales are, is read on the device: no synchronisation,
            and a captured CUDA graph takes its present value.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: lengths, shapes, devices or values are not.
    """
    scales, gradients = listed("scales", scales), listed("gradients", gradients)
    strengths, factors = strength_numbers("strength", strength)
    if scales:
        arguments = (scales, gradients, strengths, factors)
        if _subgradient.direct(_device(scales), *arguments) is not NotImplemented:
            return
    check_scales(scales)
    check_gradients(scales, gradients)
    check_lengths("strength", strengths, factors, scales)
    if scales:
        with torch.no_grad():
            _subgradient(scales, gradients, strengths, factors)


@public
def gamma_proximal_(scales: Sequence[Tensor], threshold: float | Sequence[float] | Tensor) -> None:
    """Moves each scale γ in place towards zero by the threshold, and not beyond: soft(γ, t).

    The proximal step of t·Σ|γ|, with t = learning rate · s after a step of the optimizer; unlike
    the subgradient it makes exact zeros. They carry γ's sign; −0.0 becomes 0.0, NaN stays.

    Args:
        scales: as for `gamma_subgradient_`; no two of them share memory.
        threshold: t, at least 0; given as ``strength`` is for `gamma_subgradient_`.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: lengths, shapes, devices or values are not.
    """
    scales = listed("scales", scales)
    thresholds, factors = strength_numbers("threshold", threshold)
    if scales:
        done = _proximal.direct(_device(scales), scales, thresholds, factors)
        if done is not NotImplemented:
            return
    check_scales(scales)
    for i, scale in enumerate(scales):
        check_writable(f"scales[{i}]", scale)
    check_lengths("threshold", thresholds, factors, scales)
    if scales:
        with torch.no_grad():
            _proximal(scales, thresholds, factors)


@public
def gamma_penalty(scales: Sequence[Tensor]) -> Tensor:
    """Σ|γ| over all the scales, differentiable with the subgradient sign(γ).

    Args:
        scales: as for `gamma_subgradient_`.

    Returns:
        0-dim, float32, or float64 where a scale is; accumulated in that dtype or better. 0 on the
        CPU if there are no scales.

    Raises:
        TypeError: a dtype is not floating.
        ValueError: devices differ.
    """
    scales = listed("scales", scales)
    if scales and not torch.is_grad_enabled() and forward_ad._current_level < 0:
        total: Tensor = _penalty.direct(_device(scales), scales)
        if total is not NotImplemented:
            return total
    check_scales(scales)
    if not scales:
        return torch.zeros(())
    if differentiated(*scales):
        total = _Penalty.apply(*scales)
    else:
        total = _penalty(scales)
    return total
