"""Criteria: how much each channel of a group is worth. Higher stays longer."""

from __future__ import annotations

from fastprune.criteria._scores import Scores, registry, score
from fastprune.criteria._zeros import ZeroCounts, check_relus, zero_counts
from fastprune.criteria.apoz import apoz
from fastprune.criteria.batch_norm_scale import batch_norm_scale
from fastprune.criteria.geometric_median import geometric_median
from fastprune.criteria.l1 import l1
from fastprune.criteria.l2 import l2
from fastprune.criteria.lamp import lamp
from fastprune.criteria.papm import papm
from fastprune.criteria.random import random
from fastprune.criteria.taylor import taylor

__all__ = [
    "Scores",
    "ZeroCounts",
    "apoz",
    "batch_norm_scale",
    "check_relus",
    "geometric_median",
    "l1",
    "l2",
    "lamp",
    "papm",
    "random",
    "registry",
    "score",
    "taylor",
    "zero_counts",
]
