"""Noticing that training has gone wrong, without waiting for a GPU at every batch."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastprune.errors import DivergenceError

__all__ = ["LossGuard", "check_weights"]

_GPU_BATCHES = 50
"""Batches between two looks at the losses of a GPU: each look waits for it."""


class LossGuard:
    """Watches every loss; raises when one is not a finite number.

    Args:
        device: where the losses are.
        name: of the training, for the message.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self._every = 1 if device.type == "cpu" else _GPU_BATCHES
        self._name = name
        self._unseen: list[tuple[torch.Tensor, int, int, float]] = []

    def watch(
        self, loss: torch.Tensor, epoch: int, batch: int, learning_rate: float, kept: str
    ) -> float | None:
        """Takes note of a loss; gives its value where it was looked at.

        Args:
            loss: a scalar on the device.
            epoch: from 0 on.
            batch: from 0 on.
            learning_rate: of its step.
            kept: what remains of the training if it ends here, for the message.

        Raises:
            DivergenceError: this loss or an earlier one is not finite.
        """
        self._unseen.append((loss, epoch, batch, learning_rate))
        return self.check(kept) if len(self._unseen) >= self._every else None

    def check(self, kept: str) -> float | None:
        """Looks at all losses not yet seen; gives the newest.

        Raises:
            DivergenceError: one of them is not finite.
        """
        if not self._unseen:
            return None
        losses: list[float] = torch.stack([loss for loss, *_ in self._unseen]).tolist()
        for loss, (_, epoch, batch, rate) in zip(losses, self._unseen, strict=True):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"{self._name}: the loss is {loss} in epoch {epoch + 1}, batch {batch + 1}, "
                    f"at learning rate {rate:g}; {kept}; try a lower lr, warmup_epochs or "
                    "clip_grad_norm"
                )
        self._unseen.clear()
        return losses[-1]


def check_weights(model: nn.Module, name: str, kept: str) -> None:
    """Refuses weights that are not finite, and NaN in running statistics.

    Raises:
        DivergenceError: some are not; the message names the first.
    """
    good = {k: _finite(weight.detach()) for k, weight in model.named_parameters()}
    # Not isfinite: attention masks are buffers that hold -inf on purpose.
    good |= {k: ~buffer.isnan().any() for k, buffer in model.named_buffers()}
    found: list[bool] = torch.stack(list(good.values())).tolist()
    if not all(found):
        first = next(k for k, fine in zip(good, found, strict=True) if not fine)
        raise DivergenceError(
            f"{name}: {first} holds numbers that are not finite; {kept}; try a lower lr, "
            "warmup_epochs or clip_grad_norm"
        )


def _finite(weight: torch.Tensor) -> torch.Tensor:
    """Whether all of it is, on its device."""
    if weight.is_complex() or not weight.numel():
        return weight.isfinite().all()
    # NaN is the least and the greatest. No tensors of its size on the way, as isfinite has.
    return torch.stack(weight.aminmax()).isfinite().all()
