"""Random parts of decoded images of ordinary sizes, against plain torch, image by image."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import resized_crop

IMAGES, BATCH, SIZE = 256, 64, 224
SHAPES = ((256, 341), (341, 256), (256, 384), (256, 256))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Chosen = tuple[Tensor, Tensor, list[tuple[int, ...]]]
"""Images and their parts, where they are used, and both on the host for whom that is too late."""


class Set:
    """Random images, and a batch's worth of random parts as often as asked for."""

    def __init__(self, device: Any) -> None:
        self.shapes = [SHAPES[i % len(SHAPES)] for i in range(IMAGES)]
        sizes = torch.tensor(self.shapes, dtype=torch.int32)
        lengths = 3 * sizes.long().prod(1)
        total = int(lengths.sum())
        self.pixels = torch.randint(0, 256, (total,), dtype=torch.uint8, device=device)
        pairs = zip(self.pixels.split(lengths.tolist()), self.shapes, strict=True)
        self.images = [one.view(*shape, 3) for one, shape in pairs]
        self.starts, self.sizes = (lengths.cumsum(0) - lengths).to(device), sizes.to(device)
        self.mean = torch.tensor([123.7, 116.3, 103.5], device=device)
        self.std = torch.tensor([58.4, 57.1, 57.4], device=device)
        self.device = device
        self.generator = np.random.default_rng(0)

    def batch(self) -> Chosen:
        """Parts of 8 to 100 % of the area, 3:4 to 4:3, half of them mirrored."""
        draw = self.generator
        found = []
        for place, image in enumerate(draw.integers(0, IMAGES, BATCH).tolist()):
            height, width = self.shapes[image]
            area, shape = height * width * draw.uniform(0.08, 1), np.exp(draw.uniform(-0.29, 0.29))
            h, w = (
                min(round(np.sqrt(area / shape)), height),
                min(round(np.sqrt(area * shape)), width),
            )
            top, left = draw.integers(0, [height - h + 1, width - w + 1]).tolist()
            found.append((image, top, left, h, w, place % 2))
        chosen = torch.tensor(found, device=self.device)
        return chosen[:, 0].contiguous(), chosen[:, 1:].to(torch.int32).contiguous(), found

    def ours(self, batch: Chosen, dtype: torch.dtype, last: bool) -> Tensor:
        return resized_crop(
            self.pixels,
            self.starts,
            self.sizes,
            *batch[:2],
            size=SIZE,
            mean=self.mean,
            std=self.std,
            dtype=dtype,
            channels_last=last,
        )

    def plain(self, batch: Chosen, dtype: torch.dtype, last: bool) -> Tensor:
        """Cut and interpolated one by one, the rest for all at once."""
        found = torch.empty((BATCH, 3, SIZE, SIZE), device=self.device)
        for place, (image, top, left, height, width, flip) in enumerate(batch[2]):
            whole = self.images[image]
            part = whole[top : top + height, left : left + width].permute(2, 0, 1)[None].float()
            resized = F.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=True)[0]
            found[place] = resized.flip(-1) if flip else resized
        found = found.sub_(self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))
        form = torch.channels_last if last else torch.contiguous_format
        return found.to(dtype).contiguous(memory_format=form)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def bench_imagenet(benchmark: Any, gate: Callable[..., None], dtype: str, layout: str) -> None:
    images, last = Set("cpu"), layout == "channels_last"
    batches = [images.batch() for _ in range(4)]
    out = images.ours(batches[0], DTYPES[dtype], last)
    expected = images.plain(batches[0], DTYPES[dtype], last)
    torch.testing.assert_close(out, expected, rtol=1e-2 if dtype == "bf16" else 1e-4, atol=1e-4)
    turns = {"ours": 0, "rival": 2}

    def next_of(side: str) -> Chosen:
        turns[side] += 1
        return batches[turns[side] % len(batches)]

    found = compare(
        benchmark,
        lambda: images.ours(next_of("ours"), DTYPES[dtype], last),
        lambda: images.plain(next_of("rival"), DTYPES[dtype], last),
        rounds=8,
    )
    gate(
        f"ops/resized_crop/{dtype}-{layout}",
        found,
        rival="cut, F.interpolate(antialias), flip; sub, div",
        images_per_second=round(BATCH / found.ours.best),
        shape=list(out.shape),
        dtype=dtype,
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def bench_imagenet_gpu(
    gpu: torch.device,
    gate: Callable[..., None],
    gate_fraction: Callable[..., None],
    dtype: str,
    layout: str,
) -> None:
    images, last = Set(gpu), layout == "channels_last"
    # What is written; of what is read, some is read by several images' parts.
    nbytes = BATCH * 3 * SIZE * SIZE * DTYPES[dtype].itemsize
    inputs = rotated(images.batch, nbytes)
    expected = images.plain(inputs[0], torch.float32, last)
    out = images.ours(inputs[0], torch.float32, last)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    found = compare_gpu(
        lambda one: images.ours(one, DTYPES[dtype], last),
        lambda one: images.plain(one, DTYPES[dtype], last),
        inputs,
    )
    facts = {
        "images_per_second": round(BATCH / found.ours.best),
        "shape": list(expected.shape),
        "dtype": dtype,
        "device": "cuda",
    }
    name = f"gpu/resized_crop/{dtype}-{layout}"
    rival = "cut, F.interpolate(antialias), flip; sub, div"
    gate(name, found, rival=rival, bytes=nbytes, **facts)
    gate_fraction(f"{name}-copy", found.ours.best, nbytes, "copy", **facts)
