"""Small networks with known outcomes: what each rule is held to."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastprune.errors import PlanError
from fastprune.graph import trace
from fastprune.testing.surgery import check_pruning, check_trained, fill, random_plan

__all__ = ["Assembled", "Case", "Cases", "check_case"]


class Assembled(nn.Module):
    """A network from its parts and a function ``run(network, *inputs)``.

    Args:
        run: the forward pass.
        parts: modules, parameters, tensors (buffers), or anything else; attributes under their
            names.
    """

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


@dataclass(frozen=True)
class Case:
    """A network and what must come of it.

    Attributes:
        name: what it shows.
        build: makes the network.
        groups: ``"c1:8 c2:6"``, all channel groups with their channels.
        why: layer -> reasons of its unprunable channels, without op numbers; the network's outputs
            need none.
        inputs: shapes of the inputs, or the inputs themselves.
        refused: what the PlanError says, where the forward pass holds what cannot be seen in a
            trace.
        trains: whether a backward pass is possible at all.
        batches: batch sizes to compare at.
    """

    name: str
    build: Callable[[], nn.Module]
    groups: str
    why: dict[str, str] = field(default_factory=dict)
    inputs: tuple[Any, ...] = ((1, 3, 8, 8),)
    refused: str = ""
    trains: bool = True
    batches: tuple[int, ...] = (1, 2, 3)


class Cases(list[Case]):
    """A table of cases, filled by decorating forward passes."""

    def of(
        self, groups: str = "", why: dict[str, str] | None = None, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: the forward pass and its parts are a case.

        Args:
            groups, why: as in :class:`Case`.
            options: other fields of :class:`Case`; all the rest are parts of the network.
        """
        settings = {name: options.pop(name) for name in _SETTINGS & options.keys()}

        def add(run: Callable[..., Any]) -> Callable[..., Any]:
            def build() -> nn.Module:
                return Assembled(run, **copy.deepcopy(options))

            self.append(Case(run.__name__, build, groups, why or {}, **settings))
            return run

        return add


_SETTINGS = {"inputs", "refused", "trains", "batches"}


def check_case(case: Case, *, seeds: int = 3) -> None:
    """Traces, prunes by several random plans, prunes again; raises AssertionError where anything
    differs.
    """
    model = fill(case.build()).double().eval()
    inputs = [
        i if isinstance(i, Tensor) else torch.zeros(i, dtype=torch.float64) for i in case.inputs
    ]
    graph = trace(model, tuple(inputs))
    assert " ".join(f"{g.name}:{g.channels}" for g in graph.groups) == case.groups, str(graph)
    reasons: dict[str, list[str]] = {}
    for row in graph.unprunable:
        reason = re.sub(r" \(op \d+\)", "", row.reason)
        if reason != "network output":
            reasons.setdefault(row.name, []).append(reason)
    assert {name: "; ".join(found) for name, found in reasons.items()} == case.why
    if not graph.groups:
        return
    if case.refused:
        refusal = "nothing was refused"
        try:
            check_pruning(model, graph, random_plan(graph, 0), inputs)
        except PlanError as problem:
            refusal = str(problem)
        assert case.refused in refusal
        return
    for seed in range(seeds):
        plan = random_plan(graph, seed)
        small = check_pruning(model, graph, plan, inputs, batches=case.batches)
        if case.trains:
            check_trained(small, inputs)
        left = {name: width for name, width in plan.widths().items() if width > 1}
        again = trace(small, tuple(inputs))
        assert again.widths() == left, f"{again.widths()} after pruning to {left}"
    if again.groups:
        check_pruning(small, again, random_plan(again, 7), inputs, batches=case.batches)
