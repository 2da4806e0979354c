"""How long an epoch takes here, from its first batches."""

from __future__ import annotations

import copy
import time
from contextlib import closing

import torch
from torch import nn

from fastprune.data import InputPipeline
from fastprune.training._device import kept_modes
from fastprune.training._step import TrainingStep
from fastprune.training.options import TrainingOptions

__all__ = ["epoch_seconds"]

_WARM_UP = 2


def epoch_seconds(
    model: nn.Module,
    pipeline: InputPipeline,
    recipe: TrainingOptions,
    device: torch.device,
    *,
    at_most: float = 10.0,
) -> float:
    """Seconds that training takes for one pass of ``pipeline``; ``model`` is left as it is.

    Args:
        model: the network.
        pipeline: the training images.
        recipe: how it is trained.
        device: where.
        at_most: seconds to measure; a tenth of the epoch is enough too.
    """
    scratch = copy.deepcopy(model)
    step = TrainingStep(
        scratch,
        recipe,
        device,
        None,
        (None, None),
        pipeline=pipeline,
        name="estimate",
        field="estimate",
        say=_silent,
    )
    measured, begun = 0, time.perf_counter()
    warm = min(_WARM_UP, pipeline.batches - 1)
    enough = max(_WARM_UP, pipeline.batches // 10)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), kept_modes(scratch), closing(step):
        scratch.train()
        batches = pipeline.epoch(0, placement=step.placement)
        for number, batch in enumerate(batches):
            loss, _, _ = step.run(batch, 1.0, recipe.lr, last=True)
            # The reading waits for the device: a measured time has to.
            loss.item()
            if number < warm:
                begun = time.perf_counter()
                continue
            measured += 1
            if measured >= enough or time.perf_counter() - begun > at_most:
                break
    return (time.perf_counter() - begun) / max(measured, 1) * pipeline.batches


def _silent(message: str) -> None:
    return None
