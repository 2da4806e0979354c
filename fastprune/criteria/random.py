"""Uniform noise: the control."""

from __future__ import annotations

import torch
from torch import nn

from fastprune.criteria._scores import Scores, registry
from fastprune.graph import ChannelGraph

__all__ = ["random"]


@registry.register("random", draws=True)
def random(
    model: nn.Module, graph: ChannelGraph, *, generator: torch.Generator | None = None
) -> Scores:
    """Uniform in [0, 1): the control that every other criterion has to beat.

    Args:
        generator: source of randomness; torch's default generator if None.
    """
    return {group.name: torch.rand(group.channels, generator=generator) for group in graph.groups}
