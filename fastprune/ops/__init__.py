"""Fused ops for anybody's training code, each with a reference and several implementations.

from fastprune.ops import use_backend, zero_count
zeros = zero_count(activation)              # int64 [C]
print(zero_count.explain(activation))       # what ran, and why not the rest
"""

from fastprune.ops._moments import Moments
from fastprune.ops._op import Explanation, registered, use_backend
from fastprune.ops.batch_norm_recalibrate import batch_norm_recalibrate
from fastprune.ops.batch_norm_relu_zero_count import batch_norm_relu_zero_count
from fastprune.ops.channel_scores import ChannelScores, channel_scores, channel_scores_of
from fastprune.ops.crop_flip_normalize import crop_flip_normalize
from fastprune.ops.crop_generated_weights import crop_generated_weights
from fastprune.ops.gamma_subgradient import gamma_penalty, gamma_proximal_, gamma_subgradient_
from fastprune.ops.gather_channels import GatherPlan, gather_channels
from fastprune.ops.relu_zero_count import relu_zero_count
from fastprune.ops.resized_crop import resized_crop
from fastprune.ops.zero_count import zero_count

__all__ = [
    "ChannelScores",
    "Explanation",
    "GatherPlan",
    "Moments",
    "batch_norm_recalibrate",
    "batch_norm_relu_zero_count",
    "channel_scores",
    "channel_scores_of",
    "crop_flip_normalize",
    "crop_generated_weights",
    "gamma_penalty",
    "gamma_proximal_",
    "gamma_subgradient_",
    "gather_channels",
    "registered",
    "relu_zero_count",
    "resized_crop",
    "use_backend",
    "zero_count",
]
