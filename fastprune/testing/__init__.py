"""Oracles and conformance checks, shipped for authors of networks, rules and criteria."""

from __future__ import annotations

from fastprune.testing.surgery import check_pruning, check_trained, fill, outputs, random_plan

__all__ = ["check_pruning", "check_trained", "fill", "outputs", "random_plan"]
