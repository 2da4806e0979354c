"""Batches out of a set of images in memory: crop, mirror and normalise, in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastprune.ops._checks import check_tensor
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._memory import recycled_empty
from fastprune.ops._op import Implementation, define, public

__all__ = ["crop_flip_normalize"]

RESULTS = (torch.float32, torch.bfloat16, torch.float16)


def _empty(
    pixels: Tensor, images: Tensor, dtype: torch.dtype, channels_last: bool, device: torch.device
) -> Tensor:
    return torch.empty(
        (images.shape[0], *pixels.shape[1:]),
        dtype=dtype,
        device=device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _fake(
    pixels: Tensor,
    images: Tensor,
    boxes: Tensor | None,
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return _empty(pixels, images, dtype, channels_last, pixels.device)


def _reference(
    pixels: Tensor,
    images: Tensor,
    boxes: Tensor | None,
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    found = pixels.index_select(0, images)
    if boxes is not None:
        height, width = pixels.shape[2:]
        top, left, flip = (column[:, None] for column in boxes.to(torch.int64).unbind(1))
        row = torch.arange(height, device=pixels.device) + (top - padding)
        column = torch.arange(width, device=pixels.device)
        column = torch.where(flip != 0, width - 1 - column, column) + (left - padding)
        inside = ((row >= 0) & (row < height))[:, :, None]
        inside = inside & ((column >= 0) & (column < width))[:, None, :]
        place = torch.arange(len(found), device=pixels.device)[:, None, None]
        row, column = row.clamp(0, height - 1)[:, :, None], column.clamp(0, width - 1)[:, None, :]
        moved = found.movedim(1, -1)[place, row, column].movedim(-1, 1)
        found = torch.where(inside[:, None], moved, 0)
    shape = (-1, 1, 1)
    values = (found.to(mean.dtype) - mean.view(shape)) / std.view(shape)
    return _empty(pixels, images, dtype, channels_last, pixels.device).copy_(values)


def _cpp() -> Callable[..., Tensor]:
    crop = extension().crop_flip_normalize

    def run(
        pixels: Tensor,
        images: Tensor,
        boxes: Tensor | None,
        mean: Tensor,
        std: Tensor,
        padding: int,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        shape = (images.shape[0], *pixels.shape[1:])
        out = recycled_empty(shape, dtype, channels_last=channels_last)
        crop(
            pixels.data_ptr(),
            images.data_ptr(),
            0 if boxes is None else boxes.data_ptr(),
            mean.data_ptr(),
            std.data_ptr(),
            out.data_ptr(),
            DTYPES[dtype],
            pixels.shape[0],
            images.shape[0],
            *pixels.shape[1:],
            padding,
            channels_last,
            torch.get_num_threads(),
        )
        return out

    return run


def _triton() -> Callable[..., Tensor]:
    from fastprune.kernels.triton.crop_flip_normalize import crop_flip_normalize

    kernel: Callable[..., Tensor] = crop_flip_normalize
    return kernel


def _unsupported(
    pixels: Tensor,
    images: Tensor,
    boxes: Tensor | None,
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> str | None:
    """Why the compiled implementations do not take the arguments, or None."""
    if mean.dtype != torch.float32 or dtype not in RESULTS:
        return f"dtypes {mean.dtype} and {dtype}"
    named = {"pixels": pixels, "images": images, "boxes": boxes, "mean": mean, "std": std}
    for name, tensor in named.items():
        if tensor is not None and not tensor.is_contiguous():
            return f"{name}: strides {tuple(tensor.stride())} are not contiguous"
    return None


def _unsupported_triton(pixels: Tensor, *others: object) -> str | None:
    # Positions inside an image are of 32 bits there.
    if pixels[:1].numel() >= 2**26:
        return f"images of {pixels[:1].numel():,} bytes"
    return _unsupported(pixels, *others)  # type: ignore[arg-type]


_op = define(
    "crop_flip_normalize",
    "(Tensor pixels, Tensor images, Tensor? boxes, Tensor mean, Tensor std, int padding, "
    "ScalarType dtype, bool channels_last) -> Tensor",
    fake=_fake,
    reference=_reference,
    implementations=[
        Implementation("triton", "cuda", _triton, _unsupported_triton),
        Implementation("cpp", "cpu", _cpp, _unsupported),
    ],
)


@public
def crop_flip_normalize(
    pixels: Tensor,
    images: Tensor,
    boxes: Tensor | None = None,
    *,
    mean: Tensor,
    std: Tensor,
    padding: int = 0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """A batch ``[B, C, H, W]`` of (pixel − mean) / std, of chosen images, cropped and mirrored.

    Each image is laid in a black frame (byte 0) ``padding`` wide; ``boxes`` say where in it the
    ``H`` × ``W`` of the result begin, and whether columns are then mirrored. Calculated in float32
    and rounded once, the same bits by every implementation. Nothing is waited for on a GPU.

    Args:
        pixels: the whole set, uint8 ``[M, C, H, W]``, contiguous.
        images: which of them, int64 ``[B]``, 0 to M − 1, in any order, repeated or not.
        boxes: int32 ``[B, 3]``: row and column in the frame, of 0 to 2·padding, and 1 to mirror or
            0; what lies outside the frame is as black as the frame. None: images as they are.
        mean: float32 ``[C]``, on the scale of the bytes, 0 to 255.
        std: float32 ``[C]``, likewise.
        padding: width of the frame in pixels.
        dtype: of the result: float32, bfloat16 or float16.
        channels_last: the result's memory format; otherwise it is contiguous.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: shapes, devices or ``padding`` are not.
        IndexError: on a CPU, there is no such image. On a GPU, where asking would wait for the
            device, its values are NaN.
    """
    _check("pixels", pixels, torch.uint8, pixels)
    if pixels.ndim != 4:
        raise ValueError(f"pixels: expected [M, C, H, W], got shape {list(pixels.shape)}")
    _check("images", images, torch.int64, pixels)
    if images.ndim != 1:
        raise ValueError(f"images: expected [B], got shape {list(images.shape)}")
    if boxes is not None:
        _check("boxes", boxes, torch.int32, pixels, (images.shape[0], 3))
    _check("mean", mean, torch.float32, pixels, (pixels.shape[1],))
    _check("std", std, torch.float32, pixels, (pixels.shape[1],))
    if padding < 0:
        raise ValueError(f"padding: expected 0 or more, got {padding}")
    if dtype not in RESULTS:
        raise TypeError(f"dtype: expected float32, bfloat16 or float16, got {dtype}")
    with torch.no_grad():
        result: Tensor = _op(pixels, images, boxes, mean, std, padding, dtype, channels_last)
    return result


def _check(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    pixels: Tensor,
    shape: tuple[int, ...] | None = None,
) -> None:
    check_tensor(name, tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != pixels.device:
        raise ValueError(
            f"{name}: expected device {pixels.device}, as pixels has, got {tensor.device}"
        )
