"""Batch norm statistics taken anew, for a network whose weights were changed."""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastprune.data import InputPipeline
from fastprune.training._device import kept_modes, moved

__all__ = ["recalibrate_batch_norm"]


def recalibrate_batch_norm(
    model: nn.Module, pipeline: InputPipeline, batches: int, device: torch.device | str
) -> None:
    """Sets running means and variances to their averages over the first batches of an epoch.

    Only batch norms are put into training mode, so dropout stays off; modes and momenta are
    afterwards as they were. Without batch norms, or with 0 batches, nothing happens.

    Args:
        model: on ``device``; its running statistics are changed in place.
        pipeline: its epoch 0 is used.
        batches: how many, at most all of them.
        device: where to compute.
    """
    device = torch.device(device)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms or batches < 1:
        return
    momenta = [norm.momentum for norm in norms]
    with kept_modes(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            # None: each batch counts the same, however many there are.
            norm.momentum = None
            norm.train()
        try:
            for batch in islice(pipeline.epoch(0), batches):
                model(moved(batch, device, channels_last=False)[0])
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
