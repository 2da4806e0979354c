"""A run of every method, and of every way in which one works, that takes a second or two."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["CONFIGS", "RUNS"]

# A checkpoint after every step, so that a training can be killed anywhere and go on.
TRAIN: dict[str, Any] = {"epochs": 2, "lr": 0.05, "precision": "fp32", "checkpoint_every": 0}
ONCE = TRAIN | {"epochs": 1}
BASE: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {
        "name": "digits",
        "train_limit": 96,
        "test_limit": 40,
        "batch_size": 32,
        "validation": 40,
    },
    "baseline": TRAIN,
    "finetune": TRAIN,
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}
HALF = {"prune": {"budget": {"macs": 0.5}}}
COLONY = {"name": "abc", "food_number": 3, "max_cycle": 2, "food_limit": 1}
TRAINED = COLONY | {
    "calfitness_epoch": 2,
    "fitness": {key: value for key, value in TRAIN.items() if key != "epochs"},
}
GENES = BASE | HALF | {"model": {"name": "resnet20_cifar", "options": {"depth": 8}}}
GENES["model"]["options"]["shortcut"] = "B"
GENES["baseline"] = None
TICKET = BASE | {"baseline": None, "finetune": None}


def _ticket(**options: Any) -> dict[str, Any]:
    common = {"name": "lottery", "pruning_times": 2, "rate": 0.4, "rewind_epoch": 1}
    return TICKET | {"method": common | {"train": TRAIN} | options}


PENALTY = {"schedule": "x", "reg_granularity_prune": 0.2}

RUNS: dict[str, dict[str, Any]] = {
    "one_shot": BASE
    | HALF
    | {"method": {"name": "one_shot", "iterations": 2, "finetune_between": 1}}
    | {"finetune": TRAIN | {"distill": {}}},
    "slimming": BASE
    | {"baseline": None}
    | {"method": {"name": "slimming", "ratio": 0.5, "train": TRAIN, "strength": 0.01}},
    "slimming, masked": BASE
    | HALF
    | {"method": {"name": "slimming", "start": "baseline", "mode": "masked", "train": TRAIN}},
    "abc, trained": BASE | {"method": TRAINED},
    "abc, racing": BASE | {"method": TRAINED | {"racing": True, "order": "published"}},
    "abc, shared": BASE
    | {
        "method": COLONY | {"evaluator": "shared", "calfitness_epoch": 0, "recalibrate_batches": 1}
    },
    "abc, two at a time": BASE | {"method": TRAINED | {"parallel": 2, "max_cycle": 1}},
    "metapruning": GENES
    | {
        "method": {
            "name": "metapruning",
            "pruningnet": TRAIN,
            "population": 4,
            "select_num": 2,
            "mutation_num": 2,
            "crossover_num": 1,
            "iterations": 4,
            "batches": 1,
            "weights": "generated",
            "racing": True,
        }
    },
    "lottery imp": _ticket(variant="imp"),
    "lottery refill": _ticket(variant="refill", criterion="saliency"),
    "lottery rst": _ticket(variant="rst", start="lt", rewind_epoch=2, **PENALTY),
    "lottery rsst": _ticket(
        variant="rsst", dynamic_target=50.0, **PENALTY, train=TRAIN | {"distill": {}}
    ),
    "apoz": BASE | HALF | {"method": "apoz"},
    "papm": BASE | {"method": {"name": "papm", "params_reduction": 0.4, "classes": [1, 2]}},
    "papm_split": BASE
    | {
        "method": {
            "name": "papm_split",
            "devices": 2,
            "params_reduction": 0.4,
            "head": {"epochs": 2, "batch_size": 32, "checkpoint_every": 0},
            "inference": {"batches": [1], "repeats": 2},
        }
    },
}


def _shorter(given: dict[str, Any]) -> dict[str, Any]:
    """The same run in half the time; checkpoints are the baseline's alone."""
    found: dict[str, Any] = json.loads(json.dumps(given))
    if isinstance(found["method"], str):
        found["method"] = {"name": found["method"]}
    found["data"] |= {"train_limit": 40, "test_limit": 20, "validation": 20}
    for recipe in (found["finetune"], *found["method"].values()):
        if isinstance(recipe, dict):
            recipe.pop("checkpoint_every", None)
    return found


CONFIGS: dict[str, dict[str, Any]] = {
    name: _shorter(given)
    for name, given in RUNS.items()
    if name not in ("papm_split", "abc, two at a time")
}
"""Those of one process, for what need not be killed."""
