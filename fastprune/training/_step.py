"""One optimizer step: forward and backward of its batches, then the update.

It is run in one of three ways. Eager: operation by operation. Compiled: forward and loss as one
function of torch.compile. Captured: all of it, the update too, as one CUDA graph.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastprune.data import InputPipeline, Placement
from fastprune.distributed import sum_over_ranks, world
from fastprune.errors import TrainingError
from fastprune.training._capture import Captured, CudaGraphs
from fastprune.training._compile import Compiled
from fastprune.training._device import autocast, precision_of
from fastprune.training._hooks import AfterBackward, AfterStep, owner_of
from fastprune.training._possible import uncapturable
from fastprune.training._synced import SyncedBatchNorm
from fastprune.training.distill import distillation_loss, label_loss
from fastprune.training.evaluate import check_classes
from fastprune.training.options import TrainingOptions

__all__ = ["StepKind", "TrainingStep"]

StepKind = Literal["eager", "compiled", "captured"]


class TrainingStep:
    """A network with all that changes its weights.

    Args:
        model: moved to ``device``, in the memory format of the recipe.
        options: the recipe.
        device: where to compute.
        teacher: the network to learn from, where the recipe says so; a copy is used.
        hooks: see `AfterBackward` and `AfterStep`.
        pipeline: of the training images.
        name: of the training, for messages.
        field: of a configuration that holds the recipe, for messages.
        say: told in one line of what was asked for and cannot be done here.

    Attributes:
        placement: how the network wants its images.
        dtype: what it computes in.

    Raises:
        TrainingError: capturing was asked for, and is not possible.
    """

    def __init__(
        self,
        model: nn.Module,
        options: TrainingOptions,
        device: torch.device,
        teacher: nn.Module | None,
        hooks: tuple[AfterBackward | None, AfterStep | None],
        *,
        pipeline: InputPipeline,
        name: str,
        field: str,
        say: Callable[[str], None],
    ) -> None:
        model.to(device)
        if options.channels_last:
            model.to(memory_format=torch.channels_last)
        self._model, self._options, self._device, self._name = model, options, device, name
        self.dtype = precision_of(options.precision, device)
        self._highest_label = pipeline.highest_label
        # Images in float32 also under autocast: networks may compute on them before a convolution.
        self.placement = Placement(device, channels_last=options.channels_last)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = make_optimizer(model, options)
        self._teacher = None
        if teacher is not None and options.distill is not None:
            # A copy: the caller's stays on its device and in its mode.
            self._teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
            if options.channels_last:
                self._teacher.to(memory_format=torch.channels_last)
        # On the device before the first step: a graph reads it where it is.
        self._focus = None
        if options.focus is not None:
            self._focus = torch.tensor(options.focus.classes, device=device)
        self._after_backward, self._after_step = hooks
        # What is called in the network's place, and adds the gradients of ranks.
        self._net = model if world() == 1 else _parallel(model, options, device)
        self._compiled: Compiled | None = None
        if options.compile:
            self._compiled = Compiled(self._forward, images=pipeline.batch_size, say=say)
        self._captured: Captured | None = None
        # Graphs read it, so it stays where it is.
        self._rate = torch.zeros((), device=device)
        self._uncaptured = self._capture_refusal(pipeline)
        if self._uncaptured is None:
            self._captured = Captured(
                self._whole,
                images=pipeline.batch_size,
                graphs=CudaGraphs(device),
                asked=options.capture is True,
                field=f"{field}.capture",
            )
        elif options.capture is True:
            raise TrainingError(f"{field}.capture: {self._uncaptured}; use auto or false")

    @property
    def kind(self) -> StepKind:
        """How batches are run; a captured step's first batches, and its smaller ones, are not."""
        if self._captured is not None and self._captured.refusal is None:
            return "captured"
        if self._compiled is not None and self._compiled.refusal is None:
            return "compiled"
        return "eager"

    @property
    def reason(self) -> str:
        """Why they are run so, or why in no faster way."""
        if self.kind == "captured":
            return "small batches on a GPU, whose kernels take less time than their launches"
        if self._compiled is not None:
            return self._compiled.refusal or self._compiled.parts or "asked for"
        why = self._uncaptured if self._captured is None else self._captured.refusal
        return f"not captured: {why}"

    def run(
        self, batch: tuple[torch.Tensor, torch.Tensor], share: float, rate: float, *, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Adds a batch's gradients, and changes the weights where it is the last of its step.

        Args:
            batch: images and labels, as `placement` says.
            share: the batch's share of the images of this step.
            rate: the learning rate.
            last: whether the step ends with it.

        Returns:
            the batch's mean loss, detached; logits; labels.
        """
        x, y = batch
        if self._captured is not None and self._captured.refusal is None:
            self._rate.fill_(rate)
            loss, logits = self._captured(x, y)
            return loss, logits, y
        with nullcontext() if last else self._unsynced():
            loss, logits = self._backward(x, y, share)
        if last:
            self._update(rate)
        return loss, logits, y

    def skip(self, rate: float, *, last: bool) -> None:
        """In place of `run` for a batch that is left out: the others of its step still count."""
        if last and any(weight.grad is not None for weight in self._weights):
            self._update(rate)

    def close(self) -> None:
        """Lets go of graphs and compiled code, which refer to this step and hold memory."""
        self._captured = self._compiled = None
        # What it hung on the weights goes with it.
        self._net = self._model

    def _whole(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A step of one batch, at the learning rate that lies on the device."""
        loss, logits = self._backward(x, y, 1.0)
        self._update(self._rate)
        return loss, logits

    def _backward(
        self, x: torch.Tensor, y: torch.Tensor, share: float
    ) -> tuple[torch.Tensor, ...]:
        forward = self._forward if self._compiled is None else self._compiled
        loss, logits = forward(x, y)
        torch.autograd.backward(self._scaler.scale(loss if share == 1 else loss * share))
        return loss.detach(), logits.detach()

    def _unsynced(self) -> AbstractContextManager[object]:
        """In which gradients stay on their rank, to be added with those of the step's last."""
        net = self._net
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()

    def _forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        synced = world() > 1 and self._options.batch_norm == "sync"
        with autocast(self.dtype, self._device):
            with SyncedBatchNorm() if synced else nullcontext():
                logits = self._net(x)
            check_classes(logits, len(y), self._highest_label, self._name)
            return self._loss(x, logits, y), logits

    def _update(self, rate: float | torch.Tensor) -> None:
        """Changes the weights by the gradients added since the last update."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
        if self._after_backward is not None:
            self._after_backward()
        if self._options.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._weights, self._options.clip_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._after_step is not None:
            self._after_step(rate)

    def _capture_refusal(self, pipeline: InputPipeline) -> str | None:
        """Why steps cannot be captured, or None."""
        if (why := uncapturable(self._options, self._device, pipeline)) is not None:
            return why
        for hook in (self._after_backward, self._after_step):
            if hook is not None and not _capturable(hook):
                return f"{_name_of(hook)} is called at every step and does not say capturable"
        if not self.optimizer.defaults["fused"]:
            return "torch has no fused optimizer for weights of this device or dtype"
        return None

    def _loss(self, x: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        smoothing, distill = self._options.label_smoothing, self._options.distill
        weights = self._weights_of(y)
        total = None if weights is None or world() == 1 else _total_of(weights)
        if self._teacher is None or distill is None:
            return label_loss(logits, y, label_smoothing=smoothing, weights=weights, total=total)
        with torch.no_grad():
            taught = self._teacher(x)
        return distillation_loss(
            logits,
            taught,
            y,
            temperature=distill.temperature,
            alpha=distill.alpha,
            label_smoothing=smoothing,
            weights=weights,
            total=total,
        )

    def _weights_of(self, y: torch.Tensor) -> torch.Tensor | None:
        """Of the images in the loss ``[N]``; None where they are equal."""
        if self._focus is None or self._options.focus is None:
            return None
        wanted = (y[:, None] == self._focus).any(1)
        return 1 + (self._options.focus.weight - 1) * wanted.float()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and scaler."""
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
        return {
            "model": self._model.state_dict(),
            "optimizer": optimizer,
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._captured is not None:
            self._captured.forget()


def _parallel(
    model: nn.Module, options: TrainingOptions, device: torch.device
) -> DistributedDataParallel:
    """The network of this rank among those of the others, with the first one's weights."""
    # Newer torch warns of the older name.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    buffers: dict[str, Any] = {name: options.batch_norm == "broadcast"}
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        **buffers,
        gradient_as_bucket_view=True,
        # Its first step decides, and must not be one without an exchange.
        static_graph=options.accumulate == 1,
    )


def _total_of(weights: Tensor) -> Tensor:
    """What a rank's weighted sum is divided by, so that the mean over ranks is that of all."""
    sums = sum_over_ranks(torch.stack((weights.sum(), weights.new_tensor(len(weights)))))
    return sums[0] / sums[1] * len(weights)


def _capturable(hook: Callable[..., object]) -> bool:
    return bool(getattr(owner_of(hook), "capturable", False))


def _name_of(hook: Callable[..., object]) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)


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
