"""Training batches of CIFAR's shape out of a set in memory, against plain torch and a fill."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import crop_flip_normalize

IMAGES, BATCH, PADDING, SIZE = 50_000, 256, 4, 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Set:
    """Random images, and a batch's worth of random choices as often as asked for."""

    def __init__(self, device: Any) -> None:
        shape = (IMAGES, 3, SIZE, SIZE)
        self.pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self.mean = torch.tensor([125.3, 123.0, 113.9], device=device)
        self.std = torch.tensor([63.0, 62.1, 66.7], device=device)
        self.device = device

    def batch(self) -> tuple[Tensor, Tensor]:
        places = torch.randint(0, 2 * PADDING + 1, (BATCH, 2), device=self.device)
        flips = torch.randint(0, 2, (BATCH, 1), device=self.device)
        images = torch.randint(0, IMAGES, (BATCH,), device=self.device)
        return images, torch.cat([places, flips], 1).to(torch.int32)

    def ours(self, batch: tuple[Tensor, Tensor], dtype: torch.dtype, last: bool) -> Tensor:
        return crop_flip_normalize(
            self.pixels,
            *batch,
            mean=self.mean,
            std=self.std,
            padding=PADDING,
            dtype=dtype,
            channels_last=last,
        )

    def plain(self, batch: tuple[Tensor, Tensor], dtype: torch.dtype, last: bool) -> Tensor:
        """A frame around the batch, one indexing for crops and flips, then two steps in place."""
        images, boxes = batch
        framed = F.pad(self.pixels[images], (PADDING,) * 4)
        steps = torch.arange(SIZE, device=self.device)
        row = boxes[:, 0, None] + steps
        column = boxes[:, 1, None] + torch.where(boxes[:, 2, None] != 0, SIZE - 1 - steps, steps)
        place = torch.arange(BATCH, device=self.device)[:, None, None]
        cropped = framed.movedim(1, -1)[place, row[:, :, None], column[:, None, :]].movedim(-1, 1)
        x = cropped.to(torch.float32).sub_(self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))
        form = torch.channels_last if last else torch.contiguous_format
        return x.to(dtype).contiguous(memory_format=form)


@pytest.fixture(scope="module")
def on_cpu() -> Set:
    return Set("cpu")


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rival", ["plain", "fill"])
def bench_cifar(
    benchmark: Any,
    gate: Callable[..., None],
    on_cpu: Set,
    rival: str,
    dtype: str,
    layout: str,
) -> None:
    images, last = on_cpu, layout == "channels_last"
    batches = [images.batch() for _ in range(40)]
    out = images.ours(batches[0], DTYPES[dtype], last)
    assert torch.equal(out, images.plain(batches[0], DTYPES[dtype], last))
    turns = {"ours": 0, "rival": 20}

    def next_of(side: str) -> tuple[Tensor, Tensor]:
        # Other images each time, as in an epoch: they come from the memory, not from a cache.
        turns[side] += 1
        return batches[turns[side] % len(batches)]

    # What is written, written alone.
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: images.plain(next_of("rival"), DTYPES[dtype], last),
        "fill": lambda: out.fill_(1.0),
    }
    found = compare(
        benchmark,
        lambda: images.ours(next_of("ours"), DTYPES[dtype], last),
        ways[rival],
        rounds=12,
        calls=5,
    )
    gate(
        f"ops/crop_flip_normalize/{rival}-{dtype}-{layout}",
        found,
        rival={"plain": "pad, index, sub, div", "fill": "out.fill_(1)"}[rival],
        images_per_second=round(BATCH / found.ours.best),
        bytes=out.numel() * (1 + out.element_size()),
        shape=list(out.shape),
        dtype=dtype,
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def bench_cifar_gpu(
    gpu: torch.device,
    gate: Callable[..., None],
    gate_fraction: Callable[..., None],
    dtype: str,
    layout: str,
) -> None:
    images, last = Set(gpu), layout == "channels_last"
    nbytes = BATCH * 3 * SIZE * SIZE * (1 + DTYPES[dtype].itemsize)
    inputs = rotated(images.batch, nbytes)
    expected = images.plain(inputs[0], DTYPES[dtype], last)
    assert torch.equal(images.ours(inputs[0], DTYPES[dtype], last), expected)
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
    name = f"gpu/crop_flip_normalize/{dtype}-{layout}"
    gate(name, found, rival="pad, index, sub, div", bytes=nbytes, **facts)
    gate_fraction(f"{name}-copy", found.ours.best, nbytes, "copy", **facts)
