"""ReLU that counts the zeros it makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastprune.ops import relu_zero_count

__all__ = ["ReLUWithZeroCount"]


class ReLUWithZeroCount(nn.Module):
    """ReLU ``[N, C, ...] -> [N, C, ...]`` that counts, in the same pass, the zeros it makes.

    Every call adds to the counters, in training and in evaluation, activation checkpointing's
    second call too; `reset` starts anew. The counters are not saved, so the module stands in for
    an ``nn.ReLU`` without a new name in the ``state_dict``; under DistributedDataParallel each
    rank counts what it saw. Gradients are those of ReLU.

    Args:
        channels: C.
    """

    zeros: Tensor
    positions: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: expected at least 1, got {channels}")
        # No buffers: DistributedDataParallel would overwrite every rank's with the first rank's.
        self.zeros = torch.zeros(channels, dtype=torch.int64)
        # A tensor: a number would make every call of a compiled network another network.
        self.positions = torch.zeros((), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        # Ahead of the count: activation checkpointing repeats a call up to its last saved tensor,
        # and then both are counted twice, or neither.
        self.positions.add_(x.numel() // max(x.shape[1], 1))
        return relu_zero_count(x, self.zeros)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ReLUWithZeroCount:
        """Takes the counters along where the network is moved."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Their place alone follows: `fn` may also change dtypes, or leave memory as it is found.
        device = fn(self.zeros.new_empty(0)).device
        if self.zeros.is_meta:
            self.zeros = torch.zeros_like(self.zeros, device=device)
            self.positions = torch.zeros_like(self.positions, device=device)
        else:
            self.zeros, self.positions = self.zeros.to(device), self.positions.to(device)
        return self

    def apoz(self) -> Tensor:
        """Average percentage of zeros of each channel, as a fraction: float64 ``[C]``, NaN where
        nothing was seen yet.

        Hu et al., *Network Trimming*, 2016, equation 1.
        """
        return self.zeros.double() / self.positions

    def reset(self) -> None:
        """Sets the counters to zero."""
        self.zeros.zero_()
        self.positions.zero_()

    def extra_repr(self) -> str:
        return f"channels={self.zeros.numel()}"
