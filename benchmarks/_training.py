"""Training steps on CIFAR-sized images, ours and as a plain script in PyTorch has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fastprune import models
from fastprune.data import Feed, open_pipeline
from fastprune.data._dataset import Images, PadCrop
from fastprune.training import TrainingOptions
from fastprune.training._guard import LossGuard
from fastprune.training._step import TrainingStep
from fastprune.training.metrics import Totals

__all__ = [
    "BATCH",
    "DECAY",
    "IMAGES",
    "MEAN",
    "MOMENTUM",
    "RATE",
    "STD",
    "Pictures",
    "Steps",
    "our_steps",
    "plain_steps",
    "random_pixels",
]

BATCH, IMAGES = 128, 50_000

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4

Steps = Callable[[], float]
"""Trains on one batch; gives a loss: ours the newest that is known."""


def random_pixels(images: int = 40 * BATCH) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's sizes, and by default enough images for the chunks that are timed."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images, 3, 32, 32), np.uint8)
    return pixels, generator.integers(0, 10, len(pixels), np.int64)


def our_steps(
    name: str,
    device: str,
    *,
    precision: str = "auto",
    capture: bool = False,
    hook: Callable[[nn.Module], Callable[[], object]] | None = None,
) -> Steps:
    """Steps of a training by this package, its input pipeline included.

    ``hook`` makes what is called after each backward pass.
    """
    torch.manual_seed(0)
    pixels, labels = random_pixels()
    pipeline = open_pipeline(
        Feed(
            source=Images(pixels, labels),
            indices=np.arange(len(pixels)),
            transform=PadCrop(padding=4, flip=True),
            augment=True,
            shuffle=True,
            batch_size=BATCH,
            mean=MEAN,
            std=STD,
            seed=0,
        )
    )
    options = TrainingOptions.model_validate(
        {
            "precision": precision,
            "capture": capture,
            "momentum": MOMENTUM,
            "weight_decay": DECAY,
        }
    )
    model = models.build(name).train()
    where = torch.device(device)
    step = TrainingStep(
        model,
        options,
        where,
        None,
        (None if hook is None else hook(model), None),
        pipeline=pipeline,
        name=name,
        field=name,
        say=print,
    )
    guard, totals = LossGuard(where, name), Totals(where)

    def batches() -> Iterator[Any]:
        epoch = 0
        while True:
            yield from pipeline.epoch(epoch, placement=step.placement)
            epoch += 1

    source = batches()
    losses = [float("nan")]

    def run() -> float:
        loss, logits, y = step.run(next(source), 1.0, RATE, last=True)
        seen = guard.watch(loss, 0, 0, RATE, "")
        totals.add(logits, y, loss)
        losses[0] = losses[0] if seen is None else seen
        return losses[0]

    return run


class Pictures(Dataset):
    """What torchvision's CIFAR-10 does for an image."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, *, augment: bool) -> None:
        self.pixels, self.labels = pixels.transpose(0, 2, 3, 1).copy(), labels
        moves = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [
                *(moves if augment else []),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def plain_steps(name: str, device: str) -> Steps:
    """Steps of the usual script: worker processes, eager float32, a look at every loss."""
    torch.manual_seed(0)
    model = models.build(name).train().to(device)
    loader = DataLoader(
        Pictures(*random_pixels(), augment=True),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        drop_last=True,
        pin_memory=device == "cuda",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    source = batches()

    def run() -> float:
        x, y = (part.to(device, non_blocking=True) for part in next(source))
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run
