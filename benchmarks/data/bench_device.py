"""Whole input pipelines: training batches of CIFAR's shape, against torchvision's usual one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from _interleave import Comparison, Side, compare
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from fastprune.data import Feed, Images, PadCrop, Placement, open_pipeline

IMAGES, BATCH, PADDING, SIZE = 50_000, 256, 4, 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)

# Of a round; images come from the memory, as in an epoch.
BATCHES = 2


def images() -> Images:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=np.uint8)
    return Images(pixels, generator.integers(0, 10, IMAGES))


def feed(source: Images, **changed: Any) -> Feed:
    fields: dict[str, Any] = {
        "source": source,
        "indices": np.arange(IMAGES),
        "transform": PadCrop(PADDING, flip=True),
        "augment": True,
        "shuffle": True,
        "batch_size": BATCH,
        "mean": MEAN,
        "std": STD,
        "seed": 0,
    }
    return Feed(**{**fields, **changed})


class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """What torchvision.datasets.CIFAR10 does with its bytes."""

    def __init__(self, source: Images, transform: Callable[[Any], torch.Tensor]) -> None:
        self.data = np.ascontiguousarray(source.pixels.transpose(0, 2, 3, 1))
        self.targets = source.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def usual(source: Images, training: bool) -> DataLoader[Any]:
    steps: list[Any] = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if training:
        steps = [
            transforms.RandomCrop(SIZE, padding=PADDING),
            transforms.RandomHorizontalFlip(),
            *steps,
        ]
    pictures = Pictures(source, transforms.Compose(steps))
    return DataLoader(pictures, batch_size=BATCH, shuffle=training, num_workers=0)


def epochs(pipeline: Any, placement: Placement) -> Iterator[Any]:
    """Batches without end; what an epoch costs at its beginning is in them."""
    for epoch in itertools.count():
        yield from pipeline.epoch(epoch, placement=placement)


def forever(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def take(batches: Iterator[Any], count: int) -> Any:
    for _ in range(count):
        last = next(batches)
    return last


@pytest.fixture(scope="module")
def source() -> Images:
    return images()


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def bench_cifar(benchmark: Any, gate: Callable[..., None], source: Images, layout: str) -> None:
    plain = open_pipeline(feed(source, augment=False, shuffle=False), "device")
    x, y = next(plain.epoch(0))
    pixels, labels = next(iter(usual(source, training=False)))
    torch.testing.assert_close(x, pixels, rtol=1e-5, atol=1e-5)
    assert torch.equal(y, labels)

    placement = Placement(channels_last=layout == "channels_last")
    pipeline = open_pipeline(feed(source), "device")
    ours, theirs = epochs(pipeline, placement), forever(usual(source, training=True))
    # A whole epoch a round, its beginning included, against some batches of the rival's.
    found = compare(
        benchmark,
        lambda: take(ours, pipeline.batches),
        lambda: take(theirs, BATCHES),
        rounds=6,
    )
    scale = BATCHES / pipeline.batches
    found = Comparison(Side(tuple(scale * t for t in found.ours.times)), found.rival)
    gate(
        f"data/device/cifar-{layout}",
        found,
        rival="PIL, RandomCrop, flip, ToTensor, Normalize, collate",
        images_per_second=round(BATCHES * BATCH / found.ours.best),
        rival_images_per_second=round(BATCHES * BATCH / found.rival.best),
        shape=[BATCH, 3, SIZE, SIZE],
        dtype="fp32",
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_cifar_gpu(
    gpu: torch.device,
    gate_fraction: Callable[..., None],
    source: Images,
    dtype: torch.dtype,
) -> None:
    """Whole epochs by the wall clock, the host's work included: a million images a second or more.

    The gate is a fraction of what a copy moves, measured in the same run: the million where that
    is 4.3 TB/s.
    """
    pipeline = open_pipeline(feed(source), "device")
    placement = Placement(gpu, dtype, channels_last=True)
    times = []
    for epoch in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in pipeline.epoch(epoch, placement=placement):
            pass
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    best = min(times[1:])
    rate = pipeline.images / best
    print(f"{rate:,.0f} images/s")
    nbytes = pipeline.images * 3 * SIZE * SIZE * (1 + dtype.itemsize)
    gate_fraction(
        f"gpu/data/device/cifar-{str(dtype).removeprefix('torch.')}",
        best,
        nbytes,
        "copy",
        images_per_second=round(rate),
        dtype=str(dtype).removeprefix("torch."),
        device="cuda",
    )
