"""A candidate of an ABCPruner search on ResNet-56, ours and as the usual script has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _training import BATCH, DECAY, MEAN, MOMENTUM, RATE, STD, Pictures, random_pixels
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from fastprune import models, trace
from fastprune.data import DataInfo, Feed, Images, InputPipeline, PadCrop, Splits, open_pipeline
from fastprune.methods._inherit import plan_of
from fastprune.models import resolve
from fastprune.training import TrainingOptions
from fastprune.training.evaluator import FitnessOptions, Request, TrainedEvaluator

__all__ = [
    "CODE",
    "Found",
    "SearchStep",
    "inherited",
    "our_search_step",
    "plain_search_step",
    "resnet56",
]

CODE = (5,) * 27
EVALUATION_BATCH = 256


class Found(NamedTuple):
    """What a search step gave.

    Attributes:
        loss: mean of the training.
        accuracy: percent of the validation images.
    """

    loss: float
    accuracy: float


SearchStep = Callable[[], Found]
"""Cuts a candidate out, trains it for an epoch and measures it."""


def resnet56() -> nn.Module:
    """The network that candidates are cut out of."""
    torch.manual_seed(0)
    return models.build("resnet56_cifar")


def our_search_step(
    model: nn.Module, device: str, images: int, directory: Path, *, precision: str = "auto"
) -> SearchStep:
    """By this package's evaluator, from the code on.

    Args:
        model: the unpruned network.
        device: where.
        images: to train on; half as many are measured on.
        directory: of the evaluator.
        precision: of `TrainingOptions`.
    """
    graph = trace(model, torch.zeros(1, 3, 32, 32, device=device))
    table = resolve("resnet56_cifar").units
    assert table is not None
    units = table(graph)
    recipe = {
        "epochs": 1,
        "lr": RATE,
        "schedule": "constant",
        "momentum": MOMENTUM,
        "weight_decay": DECAY,
        "precision": precision,
    }
    evaluator = TrainedEvaluator(
        model,
        graph,
        _splits(images),
        FitnessOptions(TrainingOptions.model_validate(recipe)),
        directory=directory,
        seed=0,
        device=torch.device(device),
    )
    # Once a search, as there.
    weights = dict(model.named_parameters())
    scores = {
        g.name: weights[f"{g.name}.weight"].detach().abs().sum((1, 2, 3)).cpu()
        for g in graph.groups
    }

    def run() -> Found:
        plan = plan_of(graph, units.widths(graph, CODE), scores)
        outcome = evaluator.outcome(Request(plan))
        folder = directory / "candidates" / plan.digest
        loss = json.loads((folder / "metrics.jsonl").read_text())["train_loss"]
        evaluator.forget([plan.digest])
        return Found(loss, outcome.fitness)

    return run


def _splits(images: int) -> Splits:
    def feed(first: int, count: int, *, training: bool) -> InputPipeline:
        return open_pipeline(
            Feed(
                source=Images(*random_pixels(images + images // 2)),
                indices=np.arange(first, first + count),
                transform=PadCrop(padding=4, flip=True),
                augment=training,
                shuffle=training,
                batch_size=BATCH if training else EVALUATION_BATCH,
                mean=MEAN,
                std=STD,
                seed=0,
            )
        )

    held = feed(images, images // 2, training=False)
    info = DataInfo(10, (3, 32, 32), MEAN, STD, tuple(map(str, range(10))))
    return Splits(feed(0, images, training=True), held, held, info)


class _Block(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return functional.relu(out + x)


class _ResNet56(nn.Module):
    """The CIFAR network, its blocks' inner widths by a code."""

    def __init__(self, code: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64)):
            blocks = []
            for number in range(9):
                middle = max(1, width * code[9 * stage + number] // 10)
                stride = 2 if stage and not number else 1
                blocks.append(_Block(inputs, middle, width, stride))
                inputs = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def inherited(model: nn.Module) -> nn.Module:
    """A network of the code's widths with the weights of the filters of the largest Σ|w|."""
    small = _ResNet56(CODE)
    old = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    state = small.state_dict()
    for name in state:
        state[name] = old[name].clone()
    for name, block in small.named_modules():
        if not isinstance(block, _Block):
            continue
        sums = old[f"{name}.conv1.weight"].abs().sum((1, 2, 3))
        kept = sums.argsort(descending=True)[: block.conv1.out_channels].sort().values.tolist()
        first, second = block.conv1.weight.detach().clone(), block.conv2.weight.detach().clone()
        for i, channel in enumerate(kept):
            first[i] = old[f"{name}.conv1.weight"][channel]
        for i in range(len(second)):
            for j, channel in enumerate(kept):
                second[i, j] = old[f"{name}.conv2.weight"][i, channel]
        state[f"{name}.conv1.weight"], state[f"{name}.conv2.weight"] = first, second
        for part in ("weight", "bias", "running_mean", "running_var"):
            vector = torch.empty(len(kept))
            for i, channel in enumerate(kept):
                vector[i] = old[f"{name}.bn1.{part}"][channel]
            state[f"{name}.bn1.{part}"] = vector
    small.load_state_dict(state)
    return small


def plain_search_step(model: nn.Module, device: str, images: int) -> SearchStep:
    """By the usual script: a class with widths, Python loops, DataLoaders, eager float32.

    The loaders' worker processes are started once, not for every candidate.
    """
    every = random_pixels(images + images // 2)
    pinned = device == "cuda"
    loader = DataLoader(
        Pictures(*(part[:images] for part in every), augment=True),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=pinned,
    )
    held = DataLoader(
        Pictures(*(part[images:] for part in every), augment=False),
        batch_size=EVALUATION_BATCH,
        num_workers=2,
        persistent_workers=True,
        pin_memory=pinned,
    )

    def run() -> Found:
        small = inherited(model).to(device)
        optimizer = torch.optim.SGD(
            small.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY
        )
        small.train()
        total = 0.0
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            loss = functional.cross_entropy(small(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        small.eval()
        right = 0
        with torch.no_grad():
            for x, y in held:
                x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                right += int((small(x).argmax(1) == y).sum())
        return Found(total / len(loader), 100 * right / (images // 2))

    return run
