"""|γ| of the norm layers."""

from __future__ import annotations

from torch import Tensor, nn

from fastprune.criteria._scores import Scores, join_slots, registry
from fastprune.graph import ChannelGraph

__all__ = ["batch_norm_scale"]


@registry.register("batch_norm_scale")
def batch_norm_scale(model: nn.Module, graph: ChannelGraph) -> Scores:
    """|γ| of each channel, mean over the norm layers that scale it; not normalised.

    Liu et al., *Learning Efficient Convolutional Networks through Network Slimming*, ICCV 2017. γ
    is comparable between layers as it is, so one global ranking is the published rule. Groups
    without a norm layer have no score.
    """

    def magnitude(parameter: Tensor, dim: int, name: str) -> Tensor:
        return parameter.abs()

    return join_slots(model, graph, magnitude, roles=("scale", "selected scale"), normalize=False)
