"""Reads some of a tensor's channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ChannelSelect"]


class ChannelSelect(nn.Module):
    """Keeps the channels ``index`` of axis 1 and drops the others: ``[N, C, ...] -> [N,
    len(index), ...]``.

    Surgery puts one behind a norm layer that reads a tensor which others read whole, so that what
    follows computes with fewer channels.

    Args:
        index: int64 ``[kept]``, ascending; a buffer, so it is saved with the network.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.to(torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        return f"kept={self.index.numel()}"
