"""What a network says of each class: its logits, averaged over the images of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fastprune.data import InputPipeline, Placement
from fastprune.errors import DivergenceError, TrainingError
from fastprune.training._device import kept_modes
from fastprune.training._pace import Pace
from fastprune.training.evaluate import check_classes
from fastprune.training.progress import Progress, SilentProgress

__all__ = ["MeanLogits", "mean_logits"]


class MeanLogits(NamedTuple):
    """Logits averaged by true class.

    Attributes:
        values: ``[K, K]`` float64; row k is the mean over the images whose label is k.
        images: ``[K]`` int64, of each class.
    """

    values: npt.NDArray[np.float64]
    images: npt.NDArray[np.int64]


def mean_logits(
    model: nn.Module,
    pipeline: InputPipeline,
    classes: Sequence[str],
    *,
    device: torch.device | str,
    channels_last: bool = False,
    progress: Progress | None = None,
    name: str = "mean logits",
) -> MeanLogits:
    """The mean logits of each true class over one pass of a pipeline.

    The network, which is on ``device``, computes in float32 and evaluation mode; its modes and
    weights are afterwards as they were. Images are counted in integers and logits added up in
    float64 on the device, which is read once: batch size and order change the last bits alone.

    Args:
        model: its outputs beyond the K classes are left out.
        pipeline: its epoch 0 is used.
        classes: names of the K classes, in the order of the labels.
        device: where to compute.
        channels_last: memory format of the images.
        progress: hears of the batches.
        name: of the work, for messages.

    Raises:
        TrainingError: the pipeline has no image of a class, or its labels or ``classes`` exceed
            the network's outputs.
        DivergenceError: a logit is not a finite number.
    """
    device = torch.device(device)
    count = len(classes)
    sums = torch.zeros(count, count, dtype=torch.float64, device=device)
    images = torch.zeros(count, dtype=torch.int64, device=device)
    placement = Placement(device, channels_last=channels_last)
    pace = Pace()
    title = (progress or SilentProgress()).start(name, pipeline.batches, "batches")
    with title as task, kept_modes(model), torch.no_grad():
        model.eval()
        for x, y in pace.of(pipeline.epoch(0, placement=placement)):
            logits = model(x)
            check_classes(logits, len(y), max(pipeline.highest_label, count - 1), name)
            mine = functional.one_hot(y, count)
            # A product and no index_add, whose order of additions on a GPU is by chance.
            sums += mine.double().T @ logits[:, :count].double()
            images += mine.sum(0)
            pace.images += len(y)
            task.advance(1, **pace.figures())
    counted = images.cpu().numpy()
    if missing := [k for k in range(count) if not counted[k]]:
        shown = ", ".join(f"{classes[k]} ({k})" for k in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise TrainingError(
            f"{name}: no images of class {shown}{more}; expected some of every class"
        )
    values = sums.cpu().numpy() / counted[:, None]
    if not np.isfinite(values).all():
        raise DivergenceError(f"{name}: the network gives logits that are not finite numbers")
    return MeanLogits(values, counted)
