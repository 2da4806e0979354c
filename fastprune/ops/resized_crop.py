"""Batches out of decoded images of any size: cut, resize, mirror and normalise, in one op."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprune.ops._checks import check_tensor
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._memory import recycled_empty
from fastprune.ops._op import Implementation, define, public

__all__ = ["resized_crop"]

RESULTS = (torch.float32, torch.bfloat16, torch.float16)


def _fake(
    pixels: Tensor,
    starts: Tensor,
    sizes: Tensor,
    images: Tensor,
    boxes: Tensor,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return torch.empty(
        (images.shape[0], 3, size, size),
        dtype=dtype,
        device=pixels.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _reference(
    pixels: Tensor,
    starts: Tensor,
    sizes: Tensor,
    images: Tensor,
    boxes: Tensor,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    out = _fake(pixels, starts, sizes, images, boxes, size, mean, std, dtype, channels_last)
    for place, image in enumerate(images.tolist()):
        if not 0 <= image < len(starts):
            raise IndexError(f"images[{place}]: expected 0 to {len(starts) - 1}, got {image}")
        start, (height, width) = int(starts[image]), sizes[image].tolist()
        if min(start, height, width) < 0 or start + 3 * height * width > len(pixels):
            raise ValueError(
                f"starts[{image}]: an image of {height} × {width} from byte {start} on is not "
                f"inside the {len(pixels)} bytes of pixels"
            )
        whole = pixels[start : start + 3 * height * width].view(height, width, 3)
        top, left, high, wide, flip = boxes[place].tolist()
        if min(top, left) < 0 or min(high, wide) < 1 or top + high > height or left + wide > width:
            raise ValueError(
                f"boxes[{place}]: expected a part of an image of {height} × {width}, got top "
                f"{top}, left {left}, height {high}, width {wide}"
            )
        part = whole[top : top + high, left : left + wide].movedim(-1, 0)[None].to(mean.dtype)
        found = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
        if flip:
            found = found.flip(-1)
        out[place] = (found - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return out


def _cpp() -> Callable[..., Tensor]:
    crop = extension().resized_crop

    def run(
        pixels: Tensor,
        starts: Tensor,
        sizes: Tensor,
        images: Tensor,
        boxes: Tensor,
        size: int,
        mean: Tensor,
        std: Tensor,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        batch = images.shape[0]
        out = recycled_empty((batch, 3, size, size), dtype, channels_last=channels_last)
        crop(
            pixels.data_ptr(),
            pixels.shape[0],
            starts.data_ptr(),
            sizes.data_ptr(),
            starts.shape[0],
            images.data_ptr(),
            boxes.data_ptr(),
            batch,
            size,
            mean.data_ptr(),
            std.data_ptr(),
            out.data_ptr(),
            DTYPES[dtype],
            channels_last,
            torch.get_num_threads(),
        )
        return out

    return run


def _triton() -> Callable[..., Tensor]:
    from fastprune.kernels.triton.resized_crop import resized_crop

    kernel: Callable[..., Tensor] = resized_crop
    return kernel


def _unsupported(
    pixels: Tensor,
    starts: Tensor,
    sizes: Tensor,
    images: Tensor,
    boxes: Tensor,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
) -> str | None:
    """Why the compiled implementation does not take the arguments, or None."""
    if mean.dtype != torch.float32 or dtype not in RESULTS:
        return f"dtypes {mean.dtype} and {dtype}"
    named = {
        "pixels": pixels,
        "starts": starts,
        "sizes": sizes,
        "images": images,
        "boxes": boxes,
        "mean": mean,
        "std": std,
    }
    for name, tensor in named.items():
        if not tensor.is_contiguous():
            return f"{name}: strides {tuple(tensor.stride())} are not contiguous"
    return None


def _unsupported_triton(*arguments: object) -> str | None:
    # Positions inside a result's image are of 32 bits there, and its tiles a grid's second axis.
    size = arguments[5]
    if isinstance(size, int) and 3 * size**2 >= 2**25:
        return f"size {size}"
    return _unsupported(*arguments)  # type: ignore[arg-type]


_op = define(
    "resized_crop",
    "(Tensor pixels, Tensor starts, Tensor sizes, Tensor images, Tensor boxes, int size, "
    "Tensor mean, Tensor std, ScalarType dtype, bool channels_last) -> Tensor",
    fake=_fake,
    reference=_reference,
    implementations=[
        Implementation("triton", "cuda", _triton, _unsupported_triton),
        Implementation("cpp", "cpu", _cpp, _unsupported),
    ],
)


@public
def resized_crop(
    pixels: Tensor,
    starts: Tensor,
    sizes: Tensor,
    images: Tensor,
    boxes: Tensor,
    *,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """A batch ``[B, 3, size, size]`` of (pixel − mean) / std, of parts of images of any size.

    Each part is resized as ``F.interpolate(mode="bilinear", antialias=True)`` resizes floats: by a
    triangle filter, wider where the part shrinks. What comes out is not rounded to bytes before it
    is normalised. Calculated in float32 and rounded once. Nothing is waited for on a GPU.

    Args:
        pixels: all images, one after another, uint8 ``[bytes]``, each ``[height, width, 3]``.
        starts: where each begins, int64 ``[M]``.
        sizes: height and width of each, int32 ``[M, 2]``.
        images: which of them, int64 ``[B]``, 0 to M − 1, in any order, repeated or not.
        boxes: int32 ``[B, 5]``: top, left, height and width of the part, inside its image and not
            empty; and 1 to mirror or 0.
        size: height and width of the result.
        mean: float32 ``[3]``, on the scale of the bytes, 0 to 255.
        std: float32 ``[3]``, likewise.
        dtype: of the result: float32, bfloat16 or float16.
        channels_last: the result's memory format; otherwise it is contiguous.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: shapes, devices or ``size`` are not; or, on a CPU, a part is not inside its
            image, or an image not inside ``pixels``.
        IndexError: on a CPU, there is no such image. On a GPU, where asking would wait for the
            device, what is none of these is NaN.
    """
    _check("pixels", pixels, torch.uint8, pixels, ("bytes",))
    _check("starts", starts, torch.int64, pixels, ("M",))
    _check("sizes", sizes, torch.int32, pixels, (starts.shape[0], 2))
    _check("images", images, torch.int64, pixels, ("B",))
    _check("boxes", boxes, torch.int32, pixels, (images.shape[0], 5))
    _check("mean", mean, torch.float32, pixels, (3,))
    _check("std", std, torch.float32, pixels, (3,))
    if size < 1:
        raise ValueError(f"size: expected 1 or more, got {size}")
    if dtype not in RESULTS:
        raise TypeError(f"dtype: expected float32, bfloat16 or float16, got {dtype}")
    with torch.no_grad():
        result: Tensor = _op(
            pixels, starts, sizes, images, boxes, size, mean, std, dtype, channels_last
        )
    return result


def _check(
    name: str, tensor: Tensor, dtype: torch.dtype, pixels: Tensor, shape: tuple[int | str, ...]
) -> None:
    """A dtype, the device of pixels, and a shape, whose named sizes may be any."""
    check_tensor(name, tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
    fits = tensor.ndim == len(shape) and all(
        isinstance(wanted, str) or found == wanted
        for found, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(tensor.shape)}")
    if tensor.device != pixels.device:
        raise ValueError(
            f"{name}: expected device {pixels.device}, as pixels has, got {tensor.device}"
        )
