"""Weights that a hypernetwork generates for many widths at once: MetaPruning (Liu et al., 2019).

The pruningnet's second layer FC2 is by far its largest: 3.1 GB for ResNet-50. It is read once for
all candidates, and only what a candidate keeps is computed and written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprune.ops._checks import check_tensor, check_type, differentiated
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._op import Implementation, define, public

__all__ = ["crop_generated_weights"]

# Blocks start at multiples of 16 elements of the flat result, so that each is as well aligned for
# the convolution that takes it as a tensor of its own would be.
_ALIGNMENT = 16

_WHOLE = (Integral, torch.SymInt)

Kernel = Callable[..., Tensor]


def _blocks(
    shape: Sequence[int], out_channels: Sequence[int], in_channels: Sequence[int]
) -> list[int]:
    """Sizes of what lies in the flat result: each candidate's block, then zeros up to the next."""
    sizes = []
    for out, inside in zip(out_channels, in_channels, strict=True):
        size = out * inside * shape[2] * shape[3]
        sizes += [size, -size % _ALIGNMENT]
    return sizes


def _candidates(
    flat: Tensor, shape: Sequence[int], out_channels: Sequence[int], in_channels: Sequence[int]
) -> Sequence[Tensor]:
    """Each candidate's part of something that lies as the flat result does."""
    return torch.split_with_sizes(flat, _blocks(shape, out_channels, in_channels))[::2]


def _hidden(encodings: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.relu(F.linear(encodings, weight, bias))


def _in_its_dtype(tensor: Tensor) -> AbstractContextManager[object]:
    """Products in the dtype of what is multiplied, as the kernels have them, in autocast too."""
    return torch.autocast(tensor.device.type, enabled=False)


def _reference(
    encodings: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    shape: Sequence[int],
    out_channels: Sequence[int],
    in_channels: Sequence[int],
) -> Tensor:
    flat = encodings.new_zeros(sum(_blocks(shape, out_channels, in_channels)))
    pieces = _candidates(flat, shape, out_channels, in_channels)
    with _in_its_dtype(flat):
        for k, (out, inside) in enumerate(zip(out_channels, in_channels, strict=True)):
            hidden = _hidden(encodings[k : k + 1], fc1_weight, fc1_bias)
            weights = F.linear(hidden, fc2_weight, fc2_bias).view(*shape)
            pieces[k].copy_(weights[:out, :inside].reshape(-1))
    return flat


def _fake(
    encodings: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    shape: Sequence[int],
    out_channels: Sequence[int],
    in_channels: Sequence[int],
) -> Tensor:
    return encodings.new_empty(sum(_blocks(shape, out_channels, in_channels)))


def _cpp() -> Kernel:
    crop = extension().crop_generated_weights

    def address(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    def run(
        encodings: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        shape: Sequence[int],
        out_channels: Sequence[int],
        in_channels: Sequence[int],
    ) -> Tensor:
        sizes = _blocks(shape, out_channels, in_channels)
        flat = encodings.new_empty(sum(sizes))
        # All but FC2 are small.
        encodings, fc1_weight = encodings.contiguous(), fc1_weight.contiguous()
        fc1_bias, fc2_bias = (b if b is None else b.contiguous() for b in (fc1_bias, fc2_bias))
        crop(
            encodings.data_ptr(),
            fc1_weight.data_ptr(),
            address(fc1_bias),
            fc2_weight.data_ptr(),
            address(fc2_bias),
            flat.data_ptr(),
            DTYPES[flat.dtype],
            encodings.shape[1],
            fc1_weight.shape[0],
            list(shape),
            list(out_channels),
            list(in_channels),
            sizes,
            torch.get_num_threads(),
        )
        return flat

    return run


def _triton() -> Kernel:
    from fastprune.kernels.triton.crop_generated_weights import crop_generated_weights

    kernel: Kernel = crop_generated_weights
    return kernel


def _unsupported(
    encodings: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    *rest: Any,
) -> str | None:
    if encodings.dtype not in DTYPES:
        return f"dtype {encodings.dtype}"
    if not fc2_weight.is_contiguous():
        return f"fc2_weight: strides {tuple(fc2_weight.stride())} are not contiguous"
    return None


def _unsupported_triton(
    encodings: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    *rest: Any,
) -> str | None:
    if encodings.dtype == torch.float64:
        return "dtype torch.float64"
    # A program holds whole rows of FC2 in its registers.
    if fc1_weight.shape[0] > 256:
        return f"{fc1_weight.shape[0]} hidden units, over 256"
    if fc2_weight.shape[0] > 2**30:
        return f"{fc2_weight.shape[0]} rows of fc2_weight, over 2^30"
    return _unsupported(encodings, fc1_weight, fc1_bias, fc2_weight)


_op = define(
    "crop_generated_weights",
    "(Tensor encodings, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, "
    "SymInt[] shape, SymInt[] out_channels, SymInt[] in_channels) -> Tensor",
    fake=_fake,
    reference=_reference,
    implementations=[
        Implementation("triton", "cuda", _triton, _unsupported_triton),
        Implementation("cpp", "cpu", _cpp, _unsupported),
    ],
)


class _CropGeneratedWeights(torch.autograd.Function):
    """The flat result with gradients, which read and write the kept rows of FC2 alone."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:5])
        ctx.widths = arguments[5:]
        flat: Tensor = _op(*arguments)
        return flat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with _in_its_dtype(grads[0]):
            return _gradients(ctx, grads[0])


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    encodings, fc1_weight, fc1_bias, fc2_weight, _ = ctx.saved_tensors
    shape, out_channels, in_channels = ctx.widths
    outer, inner = shape[0], shape[1] * shape[2] * shape[3]
    wanted = ctx.needs_input_grad
    hidden = _hidden(encodings, fc1_weight, fc1_bias)
    rows = fc2_weight.reshape(outer, inner, -1)
    grad_fc2 = torch.zeros_like(rows) if wanted[3] else None
    grad_bias = rows.new_zeros(outer, inner) if wanted[4] else None
    grad_hidden = []
    pieces = _candidates(upstream, shape, out_channels, in_channels)
    for k, (out, piece) in enumerate(zip(out_channels, pieces, strict=True)):
        grad = piece.view(out, -1)
        kept = grad.shape[1]
        if grad_fc2 is not None:
            grad_fc2[:out, :kept].addcmul_(grad.unsqueeze(-1), hidden[k])
        if grad_bias is not None:
            grad_bias[:out, :kept] += grad
        if any(wanted[:3]):
            # Batched over output channels: a slice of FC2 goes in where it lies, uncopied.
            grad_hidden.append((grad.unsqueeze(1) @ rows[:out, :kept]).sum(0))
    found: list[Tensor | None] = [None, None, None]
    if grad_hidden:
        before = torch.cat(grad_hidden) * (hidden > 0)
        found = [before @ fc1_weight, before.T @ encodings, before.sum(0)]
    return (
        *(g if w else None for g, w in zip(found, wanted[:3], strict=True)),
        None if grad_fc2 is None else grad_fc2.view_as(fc2_weight),
        None if grad_bias is None else grad_bias.view(-1),
        None,
        None,
        None,
    )


@public
def crop_generated_weights(
    encodings: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    shape: Sequence[int],
    out_channels: Sequence[int],
    in_channels: Sequence[int],
) -> list[Tensor]:
    """MetaPruning's generated weights of K candidates, each cropped to the widths it keeps.

    Candidate k gets ``FC2(relu(FC1(encodings[k])))``, reshaped to ``shape`` and cropped to
    ``[:out_channels[k], :in_channels[k]]``. FC2 is read once for all candidates, and only the rows
    that one of them keeps. Sums are in float32 for float16 and bfloat16. On a CPU, a candidate's
    weights are the same to the bit whatever other candidates there are, and on any number of
    threads. Differentiable in all tensors; the gradients of FC2 are dense, zero in dropped rows.

    Args:
        encodings: ``[K, E]``, floating: what FC1 is given, for instance the scales of a block.
        fc1_weight: ``[H, E]``, as ``nn.Linear`` has it; all tensors have one dtype and device.
        fc1_bias: ``[H]`` or None.
        fc2_weight: ``[O·I·kh·kw, H]``.
        fc2_bias: ``[O·I·kh·kw]`` or None.
        shape: O, I, kh, kw of the whole weight.
        out_channels: K numbers of output channels to keep, 1 to O.
        in_channels: K numbers of input channels to keep, 1 to I.

    Returns:
        K contiguous tensors ``[out_channels[k], in_channels[k], kh, kw]``: views of one buffer,
        each starting at a multiple of 16 elements.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: shapes, widths or devices are not.
    """
    tensors = {
        "encodings": encodings,
        "fc1_weight": fc1_weight,
        "fc1_bias": fc1_bias,
        "fc2_weight": fc2_weight,
        "fc2_bias": fc2_bias,
    }
    _check_tensors(encodings, fc1_weight, tensors, shape)
    _check_widths("out_channels", out_channels, encodings.shape[0], shape[0])
    _check_widths("in_channels", in_channels, encodings.shape[0], shape[1])
    arguments = (*tensors.values(), list(shape), list(out_channels), list(in_channels))
    if differentiated(*tensors.values()):
        flat: Tensor = _CropGeneratedWeights.apply(*arguments)
    else:
        flat = _op(*arguments)
    pieces = _candidates(flat, shape, out_channels, in_channels)
    return [
        piece.view(out, inside, shape[2], shape[3])
        for piece, out, inside in zip(pieces, out_channels, in_channels, strict=True)
    ]


def _check_tensors(
    encodings: Tensor,
    fc1_weight: Tensor,
    tensors: dict[str, Tensor | None],
    shape: Sequence[int],
) -> None:
    """Dtypes, devices and sizes that fit one another and the weight's shape."""
    for number in shape:
        check_type("shape", number, _WHOLE, "whole numbers")
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"shape: expected (O, I, kh, kw), all positive, got {tuple(shape)}")
    for name, tensor in tensors.items():
        if tensor is not None or name in ("encodings", "fc1_weight", "fc2_weight"):
            check_tensor(name, tensor)
    if not encodings.is_floating_point():
        raise TypeError(f"encodings: expected a floating dtype, got {encodings.dtype}")
    if encodings.ndim != 2 or encodings.shape[1] < 1:
        raise ValueError(f"encodings: expected [K, E], got shape {list(encodings.shape)}")
    if fc1_weight.ndim != 2 or fc1_weight.shape[0] < 1:
        raise ValueError(f"fc1_weight: expected [H, E], got shape {list(fc1_weight.shape)}")
    rows, hidden = math.prod(shape), fc1_weight.shape[0]
    expected = {
        "fc1_weight": (hidden, encodings.shape[1]),
        "fc1_bias": (hidden,),
        "fc2_weight": (rows, hidden),
        "fc2_bias": (rows,),
    }
    for name, size in expected.items():
        tensor = tensors[name]
        if tensor is None:
            continue
        if tensor.dtype != encodings.dtype:
            raise TypeError(
                f"{name}: expected {encodings.dtype}, as encodings have, got {tensor.dtype}"
            )
        if tensor.shape != size:
            raise ValueError(f"{name}: expected shape {list(size)}, got {list(tensor.shape)}")
        if tensor.device != encodings.device:
            raise ValueError(
                f"{name}: expected device {encodings.device}, as encodings have, got "
                f"{tensor.device}"
            )


def _check_widths(name: str, widths: Sequence[int], candidates: int, most: int) -> None:
    if len(widths) != candidates:
        raise ValueError(
            f"{name}: expected {candidates} numbers, one for each row of encodings, got "
            f"{len(widths)}"
        )
    for k, width in enumerate(widths):
        check_type(f"{name}[{k}]", width, _WHOLE, "a whole number")
        if not 1 <= width <= most:
            raise ValueError(f"{name}[{k}]: expected 1 to {most}, got {width}")
