"""Modules and hooks for users' own networks."""

from fastprune.nn.activation_statistics import ActivationStatistics
from fastprune.nn.channel_select import ChannelSelect
from fastprune.nn.fusion_head import FusionHead
from fastprune.nn.growing_penalty import GrowingPenalty
from fastprune.nn.relu_with_zero_count import ReLUWithZeroCount
from fastprune.nn.sparsity_penalty import SparsityPenalty

__all__ = [
    "ActivationStatistics",
    "ChannelSelect",
    "FusionHead",
    "GrowingPenalty",
    "ReLUWithZeroCount",
    "SparsityPenalty",
]
