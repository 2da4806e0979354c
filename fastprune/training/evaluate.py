"""Measuring a network on a dataset."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fastprune.data import InputPipeline
from fastprune.errors import TrainingError
from fastprune.training._device import autocast, kept_modes, moved, precision_of
from fastprune.training.metrics import Metrics, Totals
from fastprune.training.options import Precision
from fastprune.training.progress import Progress, SilentProgress

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    pipeline: InputPipeline,
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    channels_last: bool = False,
    progress: Progress | None = None,
    name: str = "evaluate",
) -> Metrics:
    """Accuracy and cross entropy over one pass of a pipeline.

    The network, which is on ``device``, is put into evaluation mode for it; its modes and weights
    are afterwards as they were.

    Raises:
        TrainingError: the pipeline has no images, or its labels exceed the network's classes.
    """
    device = torch.device(device)
    dtype = precision_of(precision, device)
    totals = Totals(device)
    title = (progress or SilentProgress()).start(name, pipeline.batches, "batches")
    with title as task, kept_modes(model), torch.no_grad(), autocast(dtype, device):
        model.eval()
        for batch in pipeline.epoch(0):
            x, y = moved(batch, device, channels_last=channels_last)
            logits = model(x)
            check_classes(logits, batch[1], name)
            loss = functional.cross_entropy(logits.float(), y)
            totals.add(logits, y, loss)
            task.advance(1)
    if not totals.images:
        raise TrainingError(f"{name}: there are no images to evaluate on")
    return totals.read()


def check_classes(logits: torch.Tensor, labels: torch.Tensor, name: str) -> None:
    """Refuses logits of a shape that the labels cannot index.

    Args:
        logits: what the network gave.
        labels: on the CPU, so that looking at them does not wait for a device.
        name: of the work, for the message.
    """
    if logits.ndim != 2 or logits.shape[0] != labels.shape[0]:
        raise TrainingError(
            f"{name}: expected logits [{labels.shape[0]}, classes] from the network, got "
            f"{list(logits.shape)}"
        )
    highest = int(labels.max())
    if highest >= logits.shape[1]:
        raise TrainingError(
            f"{name}: the network has {logits.shape[1]} classes, but the dataset has a label "
            f"{highest}; build it with num_classes of the dataset"
        )
