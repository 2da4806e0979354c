"""One optimizer step: forward and backward of its batches, then the update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fastprune.data import Placement
from fastprune.training._device import autocast, precision_of
from fastprune.training.distill import distillation_loss
from fastprune.training.evaluate import check_classes
from fastprune.training.options import TrainingOptions

__all__ = ["AfterBackward", "AfterStep", "TrainingStep"]

AfterBackward = Callable[[], object]
"""Called once a step with gradients complete: unscaled, accumulated, not yet clipped."""

AfterStep = Callable[[float], object]
"""Called once a step with the learning rate just used."""


class TrainingStep:
    """A network with all that changes its weights.

    Args:
        model: moved to ``device``, in the memory format of the recipe.
        options: the recipe.
        device: where to compute.
        teacher: the network to learn from, where the recipe says so; a copy is used.
        hooks: see `AfterBackward` and `AfterStep`.
        name: of the training, for messages.
        highest_label: of the training images.

    Attributes:
        placement: how the network wants its images.
    """

    def __init__(
        self,
        model: nn.Module,
        options: TrainingOptions,
        device: torch.device,
        teacher: nn.Module | None,
        hooks: tuple[AfterBackward | None, AfterStep | None],
        name: str,
        highest_label: int,
    ) -> None:
        model.to(device)
        if options.channels_last:
            model.to(memory_format=torch.channels_last)
        self._model, self._options, self._device, self._name = model, options, device, name
        self._dtype = precision_of(options.precision, device)
        self._highest_label = highest_label
        # Images in float32 also under autocast: networks may compute on them before a convolution.
        self.placement = Placement(device, channels_last=options.channels_last)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = make_optimizer(model, options)
        self._teacher = None
        if teacher is not None and options.distill is not None:
            # A copy: the caller's stays on its device and in its mode.
            self._teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
            if options.channels_last:
                self._teacher.to(memory_format=torch.channels_last)
        self._after_backward, self._after_step = hooks

    def backward(
        self, batch: tuple[torch.Tensor, torch.Tensor], share: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Adds a batch's gradients.

        Args:
            batch: images and labels, as `placement` says.
            share: the batch's share of the images of this step.

        Returns:
            the batch's mean loss, detached; logits; labels.
        """
        x, y = batch
        with autocast(self._dtype, self._device):
            logits = self._model(x)
            check_classes(logits, len(y), self._highest_label, self._name)
            loss = self._loss(x, logits, y)
        torch.autograd.backward(self._scaler.scale(loss if share == 1 else loss * share))
        return loss.detach(), logits.detach(), y

    def update(self, learning_rate: float) -> None:
        """Changes the weights by the gradients added since the last update."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
        if self._after_backward is not None:
            self._after_backward()
        if self._options.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._weights, self._options.clip_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._after_step is not None:
            self._after_step(learning_rate)

    def _loss(self, x: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        smoothing, distill = self._options.label_smoothing, self._options.distill
        if self._teacher is None or distill is None:
            return functional.cross_entropy(logits.float(), y, label_smoothing=smoothing)
        with torch.no_grad():
            taught = self._teacher(x)
        return distillation_loss(
            logits,
            taught,
            y,
            temperature=distill.temperature,
            alpha=distill.alpha,
            label_smoothing=smoothing,
        )

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and scaler."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def make_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.SGD:
    """SGD over the weights that are trained, as one kernel a step where torch has one."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if options.no_decay_norm_bias:
        # Scales of norm layers and biases are the vectors; all other weights have more dimensions.
        groups = [
            {"params": [w for w in weights if w.ndim > 1]},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
        ]
    fused = all(
        weight.device.type in ("cpu", "cuda") and weight.is_floating_point() for weight in weights
    )
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        fused=fused,
        foreach=None if fused else True,
    )
