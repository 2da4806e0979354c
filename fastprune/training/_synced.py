"""Batch norm over the batches of all ranks, as one process would do it with all of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastprune.distributed import sum_over_ranks, world

__all__ = ["SyncedBatchNorm"]


class SyncedBatchNorm(TorchFunctionMode):
    """A context in which batch norms in training mode normalise by the statistics of all ranks.

    It knows the calls of ``torch.nn.functional.batch_norm``, so modules stay the ones they are and
    functional ones are covered too. On a GPU torch's own kernels compute it. A batch norm that
    calls anything else keeps to the images of its rank.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return (_batch_norm if func is F.batch_norm else func)(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    if input.device.type == "cuda":
        from torch.nn.modules._functions import SyncBatchNorm

        group = torch.distributed.group.WORLD
        result: Tensor = SyncBatchNorm.apply(
            input, weight, bias, running_mean, running_var, eps, momentum, group, world()
        )
        return result
    y, mean, variance, count = _Normalised.apply(input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    normalised: Tensor = y
    return normalised


class _Normalised(torch.autograd.Function):
    """Sums are added up over ranks in float64: one call forward, and one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, ...]:
        channels, dims = x.shape[1], _all_but_channels(x)
        count = x.numel() // channels
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        mean, variance = mean.double(), variance.double()
        sums = torch.cat((mean * count, (variance + mean**2) * count, mean.new_tensor([count])))
        sum_over_ranks(sums)
        total = sums[-1]
        mean = sums[:channels] / total
        variance = (sums[channels:-1] / total - mean**2).clamp(min=0)
        y = F.batch_norm(x, mean.float(), variance.float(), weight, bias, False, 0.0, eps)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean.float(), scale.float(), total)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, given: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        dims, shape = _all_but_channels(x), [1, -1] + [1] * (x.ndim - 2)
        slope = given.float()
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = slope.sum(dims), (slope * normal).sum(dims)
        sums = sum_over_ranks(torch.stack((of_bias, of_weight)).double()) / total
        first, second = sums.float()
        slope = slope - first.view(shape) - normal * second.view(shape)
        factor = scale if weight is None else scale * weight.float()
        return (
            (slope * factor.view(shape)).to(x.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            of_bias.to(mean.dtype if weight is None else weight.dtype) if ctx.has_bias else None,
            None,
        )


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
