"""Parts of images of any size, resized with antialiasing, mirrored and normalised, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprune.kernels.triton._variant import Variant

__all__ = ["resized_crop", "variants"]

# Four elements a thread: each is a sum of four bytes or more.
BLOCK = 512
WARPS = 4


@triton.jit
def first_tap(to, scale, support):
    """The first of the rows, or columns, that one of the result is made of; and its centre."""
    centre = (to.to(tl.float32) + 0.5) * scale
    return tl.maximum(tl.floor(centre - support + 0.5), 0.0).to(tl.int32), centre


@triton.jit
def triangle(at, centre, steep, known):
    """The weight of row, or column, ``at``: 1 at the centre, falling; 0 past the part's end."""
    weight = tl.maximum(1.0 - tl.abs(at.to(tl.float32) + 0.5 - centre) * steep, 0.0)
    return tl.where(at < known, weight, 0.0)


@triton.jit(do_not_specialize=["known", "bytes"])
def resized_crop_tiles(
    pixels_ptr,
    starts_ptr,
    sizes_ptr,
    images_ptr,
    boxes_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    known,
    bytes,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program writes a piece of one image, in the order of its memory.

    Rows and columns in one double loop: the part is read from the caches after its first byte,
    and a pass for each would need the rows between them in memory.
    """
    place = tl.program_id(0).to(tl.int64)
    # Of int32: a result has fewer than 2^25 elements an image.
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    image = tl.load(images_ptr + place)
    there = (image >= 0) & (image < known)
    start = tl.load(starts_ptr + image, mask=there, other=0)
    height = tl.load(sizes_ptr + 2 * image, mask=there, other=0).to(tl.int64)
    width = tl.load(sizes_ptr + 2 * image + 1, mask=there, other=0).to(tl.int64)
    top = tl.load(boxes_ptr + 5 * place).to(tl.int64)
    left = tl.load(boxes_ptr + 5 * place + 1).to(tl.int64)
    high = tl.load(boxes_ptr + 5 * place + 2)
    wide = tl.load(boxes_ptr + 5 * place + 3)
    flip = tl.load(boxes_ptr + 5 * place + 4)
    # Divided, since the product of heights and widths of 31 bits and of channels may be of 64.
    there = there & (start >= 0) & (start <= bytes) & (height >= 0) & (width >= 0)
    there = there & (height * width <= (bytes - start) // 3)
    there = there & (top >= 0) & (left >= 0) & (high > 0) & (wide > 0)
    there = there & (top + high <= height) & (left + wide <= width)
    # A part that is none is passed over, not read for as long as its sizes say.
    high = tl.where(there, high, 1)
    wide = tl.where(there, wide, 1)
    if CHANNELS_LAST:
        channel = at % 3
        position = at // 3
    else:
        channel = at // (SIZE * SIZE)
        position = at % (SIZE * SIZE)
    row = position // SIZE
    column = position % SIZE
    column = tl.where(flip != 0, SIZE - 1 - column, column)
    scale_y = high.to(tl.float32) / SIZE
    scale_x = wide.to(tl.float32) / SIZE
    support_y = tl.maximum(scale_y, 1.0)
    support_x = tl.maximum(scale_x, 1.0)
    steep_y = 1.0 / support_y
    steep_x = 1.0 / support_x
    first_y, centre_y = first_tap(row, scale_y, support_y)
    first_x, centre_x = first_tap(column, scale_x, support_x)
    inside = at < tl.where(there, 3 * SIZE * SIZE, 0)
    part = pixels_ptr + start + (top * width + left) * 3
    total = tl.zeros((TILE,), tl.float32)
    weights_y = tl.zeros((TILE,), tl.float32)
    weights_x = tl.zeros((TILE,), tl.float32)
    for step_x in range(tl.ceil(2 * support_x).to(tl.int32)):
        weights_x += triangle(first_x + step_x, centre_x, steep_x, wide)
    for step_y in range(tl.ceil(2 * support_y).to(tl.int32)):
        y = first_y + step_y
        weight_y = triangle(y, centre_y, steep_y, high)
        weights_y += weight_y
        # Past the part's end its last byte is read: the weight there is 0.
        line = part + tl.minimum(y, high - 1).to(tl.int64) * (width * 3) + channel
        sum_x = tl.zeros((TILE,), tl.float32)
        for step_x in range(tl.ceil(2 * support_x).to(tl.int32)):
            x = first_x + step_x
            byte = tl.load(line + 3 * tl.minimum(x, wide - 1), mask=inside, other=0)
            sum_x += triangle(x, centre_x, steep_x, wide) * byte.to(tl.float32)
        total += weight_y * sum_x
    whole = at < 3 * SIZE * SIZE
    mean = tl.load(mean_ptr + channel, mask=whole, other=0.0)
    std = tl.load(std_ptr + channel, mask=whole, other=1.0)
    weights = tl.where(whole, weights_y * weights_x, 1.0)
    value = tl.div_rn(total / weights - mean, std)
    value = tl.where(there, value, float("nan"))
    out = out_ptr + place * (3 * SIZE * SIZE) + at
    tl.store(out, value.to(out_ptr.dtype.element_ty), mask=whole)


def resized_crop(
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
    """See the op; what is not in the set, or not in its image, is NaN."""
    out = torch.empty(
        (images.shape[0], 3, size, size),
        dtype=dtype,
        device=pixels.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if out.numel() == 0:
        return out
    grid = (images.shape[0], triton.cdiv(3 * size * size, BLOCK))
    with torch.cuda.device_of(pixels):
        resized_crop_tiles[grid](
            pixels,
            starts,
            sizes,
            images,
            boxes,
            mean,
            std,
            out,
            starts.shape[0],
            pixels.shape[0],
            **_constants(size, channels_last),
            num_warps=WARPS,
        )
    return out


def _constants(size: int, channels_last: bool) -> dict[str, int | bool]:
    return {"SIZE": size, "CHANNELS_LAST": channels_last, "TILE": BLOCK}


def variants() -> tuple[Variant, ...]:
    """The compilations that launches ask for."""
    found = []
    for name, channels_last in (("imagenet-channels_last", True), ("imagenet", False)):
        for dtype in ("fp32", "fp16", "bf16"):
            constants = _constants(224, channels_last)
            pointers = {
                "pixels_ptr": "*u8",
                "starts_ptr": "*i64",
                "sizes_ptr": "*i32",
                "images_ptr": "*i64",
                "boxes_ptr": "*i32",
                "mean_ptr": "*fp32",
                "std_ptr": "*fp32",
                "out_ptr": f"*{dtype}",
            }
            found.append(
                Variant(
                    f"{name}-{dtype}",
                    resized_crop_tiles,
                    {
                        **pointers,
                        # More than 2^31 bytes are ordinary.
                        "known": "i32",
                        "bytes": "i64",
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
