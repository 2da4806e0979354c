"""fastprune: channel pruning of convolutional networks.

    import fastprune as fp
    small = fp.prune(model, example, criterion="l1", budget={"macs": 0.5}).model

Names are imported when first used, so ``import fastprune`` costs little more than ``import
torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastprune import criteria as criteria
    from fastprune.artifact import load as load
    from fastprune.artifact import save as save
    from fastprune.errors import FastpruneError as FastpruneError
    from fastprune.graph import ChannelGraph as ChannelGraph
    from fastprune.graph import PruningPlan as PruningPlan
    from fastprune.graph import apply_plan as apply_plan
    from fastprune.graph import mask_plan as mask_plan
    from fastprune.graph import solve as solve
    from fastprune.graph import trace as trace
    from fastprune.pruning import Pruned as Pruned
    from fastprune.pruning import prune as prune
    from fastprune.records import Budget as Budget
    from fastprune.records import Cost as Cost

__version__ = "0.1.0"

_HOME = {
    "Budget": "fastprune.records",
    "ChannelGraph": "fastprune.graph",
    "Cost": "fastprune.records",
    "FastpruneError": "fastprune.errors",
    "Pruned": "fastprune.pruning",
    "PruningPlan": "fastprune.graph",
    "apply_plan": "fastprune.graph",
    "load": "fastprune.artifact",
    "mask_plan": "fastprune.graph",
    "prune": "fastprune.pruning",
    "save": "fastprune.artifact",
    "solve": "fastprune.graph",
    "trace": "fastprune.graph",
}

__all__ = [*sorted(_HOME), "__version__", "criteria"]


def __getattr__(name: str) -> Any:
    if name == "criteria":
        return importlib.import_module("fastprune.criteria")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
