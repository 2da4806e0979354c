"""Batch norm statistics taken anew, for a network whose weights were changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer

from fastprune.data import InputPipeline, Placement
from fastprune.ops import Moments, batch_norm_recalibrate
from fastprune.training._alone import left_alone
from fastprune.training._device import kept_modes

__all__ = ["recalibrate_batch_norm"]

# Subclasses may do anything in their forward; these are known to do what the op does.
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def recalibrate_batch_norm(
    model: nn.Module, pipeline: InputPipeline, batches: int, device: torch.device | str
) -> None:
    """Sets running means and variances to those of all values of the first batches of an epoch.

    They are exact: the moments of the batches are merged, so the variance is the unbiased one of
    all images pooled, with the differences between batches in it, and does not depend on the batch
    size. (An average of batch variances leaves those differences out.) What comes before a batch
    norm is normalised batch by batch, as in training, so deeper layers do see the batch size.

    Only batch norms are put into training mode, so dropout stays off; modes and momenta are
    afterwards as they were. Batch norms are computed by ``fastprune.ops.batch_norm_recalibrate``;
    those of a class of their own run their own code, in training mode, and statistics are taken of
    what they are given. Statistics of a batch norm that never runs are reset. Compiled networks
    run uncompiled. Without batch norms, or with no batch, nothing happens; after an error
    statistics are as they were.

    Args:
        model: on ``device``; its running statistics are changed in place.
        pipeline: its epoch 0 is used.
        batches: how many, at most all of them; one that bad files left with one image sits out.
        device: where to compute.
    """
    device = torch.device(device)
    norms = [
        _Norm(module)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms or batches < 1:
        return
    seen = 0
    with ExitStack() as undo:
        for norm in norms:
            undo.callback(norm.restore)
        with kept_modes(model), torch.no_grad(), _watched(norms), _uncompiled():
            model.eval()
            for norm in norms:
                norm.module.train()
            given = islice(pipeline.epoch(0, placement=Placement(device)), batches)
            for number, (x, _) in enumerate(given):
                if not left_alone(pipeline, number, len(x)):
                    model(x)
                    seen += 1
        if seen:
            undo.pop_all()
    if seen:
        for norm in norms:
            norm.write()


@dataclass(slots=True)
class _Norm:
    """A batch norm and what is known of its inputs.

    Attributes:
        moments: None until it ran: lazy modules do not know their channels before.
        calls: how often it ran.
        before: its buffers at the beginning.
    """

    module: _BatchNorm
    moments: Moments | None = None
    calls: int = 0
    before: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.before = {
            name: buffer.clone()
            for name, buffer in self.module.named_buffers(recurse=False)
            if not isinstance(buffer, UninitializedBuffer)
        }

    def restore(self) -> None:
        """Puts the statistics back that were there at the beginning."""
        for name, buffer in self.module.named_buffers(recurse=False):
            if name in self.before:
                buffer.copy_(self.before[name])

    @property
    def plain(self) -> bool:
        return type(self.module) in PLAIN and "forward" not in vars(self.module)

    def seen(self, x: Tensor) -> Moments:
        """The moments so far, before ``x``."""
        self.calls += 1
        if self.moments is None:
            self.moments = Moments.zeros(self.module.num_features, device=x.device)
        return self.moments

    def forward(self, input: Tensor) -> Tensor:
        """In the module's place, whose forward calls its argument the same."""
        module: Any = self.module
        module._check_input_dim(input)
        moments = self.seen(input)
        return batch_norm_recalibrate(input, moments, module.weight, module.bias, eps=module.eps)

    def look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the module's own forward."""
        x = args[0] if args else next(iter(kwargs.values()))
        # Otherwise its channels are elsewhere, or it looks at other ranks too: it knows better.
        if x.ndim > 1 and x.shape[1] == self.module.num_features and not _synchronised(module):
            self.moments = self.seen(x).merge(Moments.of(x))

    def write(self) -> None:
        """Puts the statistics into the module."""
        mean, variance = self.module.running_mean, self.module.running_var
        if self.moments is None or mean is None or variance is None:
            return
        mean.copy_(self.moments.mean)
        variance.copy_(self.moments.variance())
        if self.module.num_batches_tracked is not None:
            self.module.num_batches_tracked.fill_(self.calls)


def _synchronised(module: nn.Module) -> bool:
    ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ranks and isinstance(module, nn.SyncBatchNorm)


@contextmanager
def _watched(norms: list[_Norm]) -> Iterator[None]:
    """Computes plain batch norms by the op, and looks at the inputs of the others."""
    with ExitStack() as undo:
        for norm in norms:
            module = norm.module
            if not isinstance(module.running_mean, UninitializedBuffer):
                module.reset_running_stats()
            if norm.plain:
                # On the instance, so that the module's hooks still run around it.
                module.forward = norm.forward  # type: ignore[method-assign]
                undo.callback(delattr, module, "forward")
            else:
                # None: their own statistics, where they stay, count each batch the same.
                undo.callback(setattr, module, "momentum", module.momentum)
                module.momentum = None
                hook = module.register_forward_pre_hook(norm.look, with_kwargs=True)
                undo.callback(hook.remove)
        yield


def _uncompiled() -> AbstractContextManager[object]:
    """Compiled graphs hold the batch norms as they were; without dynamo there are none."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
