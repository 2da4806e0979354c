"""Reads some of a tensor's channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastprune.ops._checks import check_type

__all__ = ["ChannelSelect"]

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
        check_type("index", index, Tensor, "a tensor")
        if index.dtype not in _WHOLE:
            raise TypeError(f"index: expected whole numbers, got {index.dtype}")
        if index.ndim != 1:
            raise ValueError(f"index: expected shape [kept], got {list(index.shape)}")
        self.register_buffer("index", index.to(torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        return f"kept={self.index.numel()}"
