"""How seldom a channel is zero behind its ReLU."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from fastprune.criteria._scores import Scores, registry
from fastprune.criteria._zeros import zero_counts
from fastprune.graph import ChannelGraph

__all__ = ["apoz"]


@registry.register("apoz", data=True)
def apoz(
    model: nn.Module, graph: ChannelGraph, *, batches: Iterable[tuple[Tensor, Tensor]]
) -> Scores:
    """1 - APoZ of each channel, pooled over its ReLUs; not normalised.

    Hu et al., *Network Trimming*, 2016: a neuron that is mostly zero is redundant. The fraction is
    comparable between layers as it is. Groups without a ReLU have no score.

    Args:
        batches: (images ``[N, ...]``, labels ``[N]``); how they are batched makes no difference.

    Raises:
        FastpruneError: as `zero_counts`.
    """
    found = zero_counts(model, graph, batches).apoz(graph)
    return {name: (1 - fraction).float() for name, fraction in found.items()}
