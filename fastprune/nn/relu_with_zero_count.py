"""ReLU that counts the zeros it makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastprune.ops import relu_zero_count

__all__ = ["ReLUWithZeroCount"]


class ReLUWithZeroCount(nn.Module):
    """ReLU ``[N, C, ...] -> [N, C, ...]`` that counts, in the same pass, the zeros it makes.

    Every call adds to the counters, in training and in evaluation; `reset` starts anew. The
    counters are buffers that are not saved, so the module stands in for an ``nn.ReLU`` without
    a new name in the ``state_dict``. Gradients are those of ReLU.

    Args:
        channels: C.
    """

    zeros: Tensor
    positions: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: expected at least 1, got {channels}")
        self.register_buffer("zeros", torch.zeros(channels, dtype=torch.int64), persistent=False)
        # A tensor: a number would make every call of a compiled network another network.
        self.register_buffer("positions", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = relu_zero_count(x, self.zeros)
        self.positions.add_(x.numel() // x.shape[1])
        return y

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
