"""Measuring a network on a dataset."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from fastprune.data import InputPipeline, Part, Placement
from fastprune.distributed import rank, world
from fastprune.errors import TrainingError
from fastprune.training._capture import Captured, CudaGraphs, capture_refusal
from fastprune.training._compile import Compiled
from fastprune.training._device import autocast, kept_modes, precision_of
from fastprune.training._in_halves import InHalves
from fastprune.training._pace import Pace
from fastprune.training.metrics import Metrics, Totals
from fastprune.training.options import Capture, Precision
from fastprune.training.progress import Progress, SilentProgress

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    pipeline: InputPipeline,
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    channels_last: bool = False,
    compile: bool = False,
    capture: Capture = "auto",
    by_class: int = 0,
    progress: Progress | None = None,
    name: str = "evaluate",
) -> Metrics:
    """Accuracy and cross entropy over one pass of a pipeline, whose batches ranks share.

    The network, which is on ``device``, is put into evaluation mode for it; its modes and weights
    are afterwards as they were.

    Args:
        by_class: of how many classes each one's accuracy is wanted too; 0, of none.

    Raises:
        TrainingError: the pipeline has no images, or its labels exceed the network's classes.
    """
    device = torch.device(device)
    dtype = precision_of(precision, device)
    told = progress or SilentProgress()

    def say(message: str) -> None:
        told.note(f"{name}: {message}")

    halves = InHalves(say)

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Inside, so that a graph holds the conversion of the weights too.
        with autocast(dtype, device):
            if compile:
                return (model(x),)
            parts = halves.parts(model, x)
            return (parts[0] if len(parts) == 1 else torch.cat(parts),)

    run: Callable[..., tuple[torch.Tensor, ...]] = forward
    if compile:
        run = Compiled(forward, images=pipeline.batch_size, say=say)
    refusal = capture_refusal(device, pipeline)
    if capture is True and refusal is not None:
        raise TrainingError(f"{name}.capture: {refusal}; use auto or false")
    if capture and refusal is None and not compile:
        run = Captured(
            forward,
            images=pipeline.batch_size,
            graphs=CudaGraphs(device),
            asked=capture is True,
            field=f"{name}.capture",
        )
    totals, pace = Totals(device, by_class), Pace()
    part = Part(rank(), world(), dealt=True)
    batches = part.of(pipeline.images, pipeline.batch_size).batches
    title = told.start(name, batches, "batches")
    with title as task, kept_modes(model), torch.no_grad():
        model.eval()
        placement = Placement(device, channels_last=channels_last)
        for x, y in pace.of(pipeline.epoch(0, placement=placement, part=part)):
            (logits,) = run(x)
            check_classes(logits, len(y), pipeline.highest_label, name)
            loss = functional.cross_entropy(logits.float(), y)
            totals.add(logits, y, loss)
            pace.images += len(y)
            task.advance(1, **pace.figures())
    totals.add_ranks()
    if not totals.images:
        raise TrainingError(f"{name}: there are no images to evaluate on")
    return totals.read()


def check_classes(logits: torch.Tensor, images: int, highest: int, name: str) -> None:
    """Refuses logits of a shape that the labels cannot index.

    Args:
        logits: what the network gave.
        images: of the batch.
        highest: label of the dataset; looking at those of a batch would wait for the device.
        name: of the work, for the message.
    """
    if not isinstance(logits, torch.Tensor):
        raise TrainingError(
            f"{name}: expected logits [{images}, classes] from the network, got a "
            f"{type(logits).__name__}"
        )
    if logits.ndim != 2 or logits.shape[0] != images:
        raise TrainingError(
            f"{name}: expected logits [{images}, classes] from the network, got "
            f"{list(logits.shape)}"
        )
    if highest >= logits.shape[1]:
        raise TrainingError(
            f"{name}: the network has {logits.shape[1]} classes, but the dataset has a label "
            f"{highest}; build it with num_classes of the dataset"
        )
