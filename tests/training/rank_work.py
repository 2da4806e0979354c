"""What the tests of training on several ranks do on each of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune.data import DataOptions, load
from fastprune.distributed import rank
from fastprune.nn import GrowingPenalty, SparsityPenalty
from fastprune.training import TrainingOptions, evaluate, fit


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def trained(
    given: dict[str, Any], folder: str | None = None, hook: str = "", stop: int = 0
) -> dict[str, Any]:
    """A training's end: weights, a digest of them, and what was measured."""
    data = DataOptions(
        batch_size=given.pop("batch_size", 32), validation=40, train_limit=107, test_limit=40
    )
    splits = load(data, seed=0)
    model = network()
    options = TrainingOptions.model_validate({"lr": 0.05, "precision": "fp32", **given})
    hooks: dict[str, Any] = {}
    if hook == "sparsity":
        hooks["after_backward"] = SparsityPenalty(model, 1e-2)
    elif hook == "growing":
        mask = torch.zeros(16, 8, 3, 3, dtype=torch.bool)
        mask[:8] = True
        penalty = GrowingPenalty(
            dict(model.named_parameters()),
            penalised={"3.weight": mask},
            schedule="x",
            granularity=0.1,
            limit=10,
            steps=12,
        )
        hooks["after_backward"] = penalty
    steps = 0

    def stopping(_: float) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise InterruptedError

    if stop:
        hooks["after_step"] = stopping
    result = fit(
        model,
        splits,
        options,
        directory=None if folder is None else Path(folder),
        seed=0,
        device="cpu",
        teacher=network(1) if options.distill else None,
        **hooks,
    )
    tested = evaluate(model, splits.test, device="cpu")
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    weights = torch.cat([t.double().flatten() for t in model.state_dict().values()])
    return {
        "rank": rank(),
        "digest": digest.hexdigest(),
        "weights": weights.tolist(),
        "losses": [record.train_loss for record in result.history],
        "top1": [record.train_top1 for record in result.history],
        "validation": [record.validation_top1 for record in result.history],
        "test": tested.to_dict(),
    }
