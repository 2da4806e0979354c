"""What every method must hold to, on a tiny network and real digits; for plug-ins too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune import data
from fastprune.artifact import restore
from fastprune.graph import ChannelGraph, GeneTable, apply_plan, gene_table, mask_plan, trace
from fastprune.methods import (
    MethodContext,
    MethodOptions,
    MethodResult,
    PruneOptions,
    registry,
)
from fastprune.models import Network
from fastprune.testing.surgery import fill
from fastprune.training import TrainingOptions
from fastprune.training.progress import SilentProgress

__all__ = ["TinyResidual", "check_method", "method_context"]


class TinyResidual(nn.Module):
    """Three convolutions with batch norm, the last two in a residual block; a linear head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(x + self.bn3(self.conv2(torch.relu(self.bn2(self.conv1(x))))))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def method_context(folder: Path, options: MethodOptions, prune: PruneOptions) -> MethodContext:
    """A context with a filled `TinyResidual` and 96 digits to train on.

    Args:
        folder: of the method's checkpoints; made if it is not there.
    """

    folder.mkdir(parents=True, exist_ok=True)
    (model, splits), example = _opened(), torch.zeros(1, 3, 32, 32)
    return MethodContext(
        model=model,
        graph=trace(model, example, keep=prune.keep, select=options.selected),
        example=example,
        splits=splits,
        prune=prune,
        directory=folder,
        seed=0,
        device=torch.device("cpu"),
        fresh=_fresh,
        finetune=TrainingOptions(epochs=1, lr=0.05),
        progress=SilentProgress(),
        reopen=_opened,
        network=Network("tiny", TinyResidual, genes=_genes),
    )


def _genes(graph: ChannelGraph) -> GeneTable:
    """One free id, of the channels inside the block; the head reads the others."""
    return gene_table(
        graph,
        {"stem": ["stem"], "conv1": ["conv1"]},
        outputs=["stem"],
        middles=["conv1"],
        whole=["stem"],
        encodings={"stem": ([None], 4), "conv1": (["conv1"], 4), "conv2": (["conv1"], 4)},
    )


def _fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return TinyResidual()


def _opened() -> tuple[nn.Module, data.Splits]:
    options = data.DataOptions(train_limit=96, test_limit=40, batch_size=32)
    return fill(_fresh(0)), data.load(options, 0)


def check_method(
    folder: Path, given: dict[str, Any], prune: PruneOptions | None = None
) -> MethodResult:
    """Runs a method three times: afresh, again in the same folder, afresh in another.

    Args:
        folder: an empty one.
        given: the method's options, ``name`` among them.
        prune: the common options.

    Raises:
        AssertionError: the plan drops nothing, though such a plan is no result of these options,
            or does not fit, the pruned network is not the
            masked one, the context's network was altered, or a repetition gives something else.
    """
    entry, prune = registry.get(given["name"]), prune or PruneOptions()
    options = entry.options.model_validate(given)
    _hold(options.problems(prune) == [], f"options: {options.problems(prune)}")
    context = method_context(folder / "a", options, prune)
    before = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    first: MethodResult = entry.build(context, options)
    _same(before, context.model.state_dict(), "the context's network was altered")
    context.graph.check(first.plan)
    small = apply_plan(
        first.model, context.graph, first.plan, allow_unchanged=options.allows_unchanged
    )
    masked = mask_plan(first.model, context.graph, first.plan)
    images, _ = next(iter(context.splits.test.epoch(0)))
    with torch.no_grad():
        got, expected = (n.double().eval()(images.double()) for n in (small, masked))
    error = float((got - expected).abs().max() / expected.abs().max())
    _hold(error < 1e-10, f"pruned and masked network differ by {error:.2g}")
    if first.pruned_state is not None:
        restore(small, first.pruned_state)
    _hold(json.loads(json.dumps(first.notes)) == first.notes, "notes are not plain data")
    for place in ("a", "b"):
        again = entry.build(method_context(folder / place, options, prune), options)
        _hold(again.plan == first.plan, f"another plan when repeated in {place}")
        _same(first.model.state_dict(), again.model.state_dict(), f"other weights in {place}")
        _same(first.pruned_state or {}, again.pruned_state or {}, f"other weights in {place}")
    return first


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], message: str) -> None:
    _hold(list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a), message)


def _hold(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
