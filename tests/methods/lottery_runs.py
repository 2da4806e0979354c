"""Lottery tickets on a tiny network and a few digits, and a look at how they train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastprune import data
from fastprune.files import sha256_of
from fastprune.methods import MethodContext, PruneOptions
from fastprune.methods import lottery as method
from fastprune.methods._coordinates import scatter_state
from fastprune.methods._tickets import Structure, Ticket, first_ticket
from fastprune.methods.lottery import LotteryOptions
from fastprune.testing.methods import method_context
from fastprune.training import EpochRecord, FitResult, checkpoint, fit

TRAIN: dict[str, Any] = {"epochs": 2, "lr": 0.05, "precision": "fp32"}
VARIANTS = ("imp", "refill", "rst", "rsst")

State = dict[str, Tensor]


def few_digits() -> data.Splits:
    chosen = data.DataOptions(train_limit=96, test_limit=40, batch_size=32, validation=60)
    return data.load(chosen, 0)


def copied(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


@dataclass
class Seen:
    """What passed by as the method trained.

    Attributes:
        begun: weights that each state began with, as they were handed over.
        ended: those it ended with.
        rewinds: digest of the rewind weights before and after each state, where there were any.
        epochs: weights of state 0 after each epoch.
        given: the arguments of each training.
    """

    begun: list[State] = field(default_factory=list)
    ended: list[State] = field(default_factory=list)
    rewinds: list[str] = field(default_factory=list)
    epochs: list[State] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)
    nets: list[nn.Module] = field(default_factory=list)


def spied(monkeypatch: pytest.MonkeyPatch, folder: Path, train: Callable[..., Any] = fit) -> Seen:
    seen, rewind = Seen(), folder / "rewind.safetensors"

    def spying(model: nn.Module, splits: data.Splits, options: Any, **given: Any) -> FitResult:
        seen.begun.append(copied(model))
        seen.nets.append(model)
        seen.given.append(given | {"options": options})
        after, first = given["after_epoch"], len(seen.begun) == 1

        def after_epoch(record: EpochRecord) -> None:
            after(record)
            if first:
                seen.epochs.append(copied(model))

        if rewind.is_file():
            seen.rewinds.append(sha256_of(rewind))
        result: FitResult = train(model, splits, options, **given | {"after_epoch": after_epoch})
        seen.ended.append(copied(model))
        seen.rewinds.append(sha256_of(rewind))
        return result

    monkeypatch.setattr(method, "fit", spying)
    return seen


def options_of(variant: str, **given: Any) -> LotteryOptions:
    more = {"rewind_epoch": 1} if given.get("start", "rewind_lt") == "rewind_lt" else {}
    found = LotteryOptions.model_validate(
        {"variant": variant, "train": TRAIN, "pruning_times": 2, "rate": 0.3, **more, **given}
    )
    assert found.problems(PruneOptions()) == []
    return found


def context_of(folder: Path, options: LotteryOptions, splits: data.Splits) -> MethodContext:
    return replace(method_context(folder, options, PruneOptions()), splits=splits)


def tickets(folder: Path, context: MethodContext, options: LotteryOptions) -> list[Ticket]:
    read = [
        Ticket.of(checkpoint.read(folder / f"ticket-{number:02}.pt"))
        for number in range(1, options.pruning_times + 1)
    ]
    return [first_ticket(context.graph, options), *read]


def in_whole(state: State, structure: Structure, context: MethodContext) -> State:
    return dict(scatter_state(state, context.graph, structure.plan, context.fresh(0)))


def held(state: State, structure: Structure) -> bool:
    """Whether weights are zero exactly where they are masked."""
    return all(torch.equal(state[name] != 0, mask) for name, mask in structure.masks.items())
