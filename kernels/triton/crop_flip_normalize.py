"""Images out of a set of bytes, cropped, mirrored and normalised, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant

__all__ = ["crop_flip_normalize", "variants"]

# Eight elements a thread: 16 bytes of a half.
BLOCK = 1024
WARPS = 4


@triton.jit(do_not_specialize=["known", "padding"])
def crop_flip_normalize_tiles(
    pixels_ptr,
    images_ptr,
    boxes_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    known,
    padding,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BOXES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SIZE: tl.constexpr,
):
    """A program writes a piece of one image, in the order of its memory.

    Sizes are constants: a set has images of one size, and dividing by a constant is a product.
    """
    image = tl.program_id(0).to(tl.int64)
    # Of int32: an image has fewer than 2^26 elements.
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    source = tl.load(images_ptr + image)
    there = (source >= 0) & (source < known)
    if CHANNELS_LAST:
        channel = at % CHANNELS
        position = at // CHANNELS
    else:
        channel = at // (HEIGHT * WIDTH)
        position = at % (HEIGHT * WIDTH)
    row = position // WIDTH
    column = position % WIDTH
    whole = at < CHANNELS * HEIGHT * WIDTH
    inside = at < tl.where(there, CHANNELS * HEIGHT * WIDTH, 0)
    if BOXES:
        # Wholly outside is as black one step away, and 32 bits hold that.
        top = tl.load(boxes_ptr + 3 * image).to(tl.int64) - padding
        left = tl.load(boxes_ptr + 3 * image + 1).to(tl.int64) - padding
        flip = tl.load(boxes_ptr + 3 * image + 2)
        row += tl.minimum(tl.maximum(top, -HEIGHT), HEIGHT).to(tl.int32)
        column = tl.where(flip != 0, WIDTH - 1 - column, column)
        column += tl.minimum(tl.maximum(left, -WIDTH), WIDTH).to(tl.int32)
        inside = inside & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    start = pixels_ptr + source * (CHANNELS * HEIGHT * WIDTH)
    place = (channel * HEIGHT + row) * WIDTH + column
    byte = tl.load(start + place, mask=inside, other=0)
    mean = tl.load(mean_ptr + channel, mask=whole, other=0.0)
    std = tl.load(std_ptr + channel, mask=whole, other=1.0)
    # Rounded as the reference's division is; the operator / is not.
    value = tl.div_rn(byte.to(tl.float32) - mean, std)
    value = tl.where(there, value, float("nan"))
    out = out_ptr + image * (CHANNELS * HEIGHT * WIDTH) + at
    tl.store(out, value.to(out_ptr.dtype.element_ty), mask=whole)


def crop_flip_normalize(
    pixels: Tensor,
    images: Tensor,
    boxes: Tensor | None,
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """See the op; images that are not in the set are NaN."""
    out = torch.empty(
        (images.shape[0], *pixels.shape[1:]),
        dtype=dtype,
        device=pixels.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if out.numel() == 0:
        return out
    constants = _constants(tuple(pixels.shape[1:]), boxes is not None, channels_last)
    grid = (images.shape[0], triton.cdiv(out[0].numel(), BLOCK))
    with torch.cuda.device_of(pixels):
        crop_flip_normalize_tiles[grid](
            pixels,
            images,
            images if boxes is None else boxes,
            mean,
            std,
            out,
            pixels.shape[0],
            padding,
            **constants,
            num_warps=WARPS,
        )
    return out


def _constants(shape: tuple[int, ...], boxes: bool, channels_last: bool) -> dict[str, int | bool]:
    channels, height, width = shape
    return {
        "CHANNELS": channels,
        "HEIGHT": height,
        "WIDTH": width,
        "BOXES": boxes,
        # Of one channel, both formats are the same memory.
        "CHANNELS_LAST": channels_last and channels > 1,
        "SIZE": BLOCK,
    }


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    found = []
    for name, shape, boxes, channels_last in (
        ("cifar-channels_last", (3, 32, 32), True, True),
        ("cifar", (3, 32, 32), True, False),
        ("cifar-whole", (3, 32, 32), False, True),
        ("imagenet-channels_last", (3, 224, 224), True, True),
    ):
        for dtype in ("fp32", "fp16", "bf16"):
            constants = _constants(shape, boxes, channels_last)
            pointers = {
                "pixels_ptr": "*u8",
                "images_ptr": "*i64",
                "boxes_ptr": "*i32" if boxes else "*i64",
                "mean_ptr": "*fp32",
                "std_ptr": "*fp32",
                "out_ptr": f"*{dtype}",
            }
            found.append(
                Variant(
                    f"{name}-{dtype}",
                    crop_flip_normalize_tiles,
                    {
                        **pointers,
                        "known": "i32",
                        "padding": "i32",
                        **dict.fromkeys(constants, "constexpr"),
                    },
                    constants,
                    aligned=tuple(pointers),
                    warps=WARPS,
                    # Bytes at any offset are loaded one by one; what is written is what counts.
                    wide=False,
                )
            )
    return tuple(found)
