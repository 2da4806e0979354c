"""Oracles and conformance checks, shipped for authors of networks, rules and criteria."""

from __future__ import annotations

from fastprune.testing.networks import Assembled, Case, Cases, check_case
from fastprune.testing.surgery import check_pruning, check_trained, fill, outputs, random_plan

__all__ = [
    "Assembled",
    "Case",
    "Cases",
    "check_case",
    "check_pruning",
    "check_trained",
    "fill",
    "outputs",
    "random_plan",
]
