"""What the tests of training on several ranks do on each of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune.data import DataOptions, load
from fastprune.distributed import rank
from fastprune.graph import trace
from fastprune.methods._pruningnet import PruningNet, Structures
from fastprune.models import resolve
from fastprune.nn import GrowingPenalty, SparsityPenalty
from fastprune.training import TrainingOptions, evaluate, fit
from fastprune.training.result import EpochRecord


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
    """A training's end: weights, a digest of them, and what was measured.

    It is interrupted after ``stop`` steps or, of a negative one, as so many epochs are about to
    end, of whose last step there is a checkpoint.
    """
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

    def closing(record: EpochRecord) -> None:
        if record.epoch == -stop:
            raise InterruptedError

    if stop:
        hooks |= {"after_step": stopping, "after_epoch": closing}
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


def pruningnet(structures: str) -> dict[str, Any]:
    """A pruningnet's training, of a rate at which rounding does not grow, and its structures."""
    known = resolve("resnet20_cifar")
    assert known.genes is not None
    example = torch.zeros(1, 3, 32, 32)
    torch.manual_seed(0)
    model = known.build(depth=8, shortcut="B").eval()
    net = PruningNet(model, known.genes(trace(model, example)), example)
    own = rank() if structures == "rank" else None
    drawn = Structures(net, 0, own)
    genes = []

    def after_step(rate: float) -> None:
        genes.append(list(drawn.gene))
        drawn(rate)

    splits = load(DataOptions(batch_size=32, validation=0, train_limit=90, test_limit=40), seed=0)
    options = TrainingOptions(
        epochs=1, lr=1e-3, precision="fp32", batch_norm="rank" if own is not None else "sync"
    )
    fit(net, splits, options, seed=0, device="cpu", after_step=after_step)
    weights = torch.cat([weight.detach().flatten() for weight in net.parameters()])
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    return {"genes": genes, "digest": digest, "weights": weights[::97].tolist()}


def dropped() -> list[list[float]]:
    """What a dropout lets through in each step."""
    seen: list[list[float]] = []

    class Seen(nn.Dropout):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(super().forward(torch.ones(20)).tolist())
            return input

    splits = load(DataOptions(batch_size=32, validation=0, train_limit=64, test_limit=40), seed=0)
    model = nn.Sequential(network(), Seen())
    fit(model, splits, TrainingOptions(epochs=1, precision="fp32"), seed=0, device="cpu")
    return seen


def measured() -> dict[str, Any]:
    """All figures of a network that was not trained."""
    data = DataOptions(eval_batch_size=7, train_limit=64, test_limit=40)
    model = network().eval()
    return evaluate(model, load(data, seed=0).test, device="cpu", by_class=10).to_dict()
