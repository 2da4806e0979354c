"""Score the channels of a trained network and drop the lowest, at once or in several rounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from fastprune import criteria
from fastprune.artifact import load_state, restore, save_state
from fastprune.data import Placement
from fastprune.distributed import first
from fastprune.errors import FastpruneError, TrainingError, nearest
from fastprune.files import write_json
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, trace
from fastprune.methods import (
    MethodContext,
    MethodOptions,
    MethodResult,
    PruneOptions,
    registry,
)
from fastprune.methods._scoring import recalibrated_state, scorer
from fastprune.methods._solving import Solved, plan_of
from fastprune.options import expecting
from fastprune.records import Budget
from fastprune.training import fit
from fastprune.training.evaluator import Request

__all__ = ["OneShotOptions", "one_shot"]


class OneShotOptions(MethodOptions):
    """Options of one-shot and gradual pruning.

    Attributes:
        criterion: how channels are scored; of several, the one is taken whose plan keeps the
            highest accuracy on the validation images.
        evaluator: ``shared`` for several criteria: their plans' batch norm statistics are taken
            anew and their inherited weights measured, steps in common once.
        recalibrate_batches: training batches of these statistics, 0 to keep those inherited; None
            is 10.
        batches: training batches that a criterion which looks at data gets to see.
        iterations: rounds; with several, each takes the same factor off every budget and scores
            anew.
        finetune_between: epochs of fine-tuning after every round but the last.
    """

    name: Literal["one_shot"] = "one_shot"
    criterion: Annotated[
        str | tuple[str, ...], expecting("a criterion by name, or a list of several")
    ] = "l1"
    evaluator: Literal["shared"] | None = None
    recalibrate_batches: int | None = Field(default=None, ge=0)
    batches: int = Field(default=10, ge=1)
    iterations: int = Field(default=1, ge=1)
    finetune_between: int = Field(default=0, ge=0)

    @field_validator("criterion")
    @classmethod
    def _known(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (given,) if isinstance(given, str) else given:
            if name not in criteria.registry:
                known = criteria.registry.names()
                raise ValueError(f"unknown criterion {name!r}{nearest(name, known)}")
        return given

    @property
    def all_criteria(self) -> tuple[str, ...]:
        """All that are asked for."""
        return (self.criterion,) if isinstance(self.criterion, str) else self.criterion

    @property
    def needs_validation(self) -> bool:
        return not isinstance(self.criterion, str)

    def problems(self, prune: PruneOptions) -> list[str]:
        found = []
        if prune.budget is None and not prune.ratios:
            found.append("prune.budget: one_shot needs a budget, such as {macs: 0.5}, or ratios")
        if self.iterations > 1 and "latency_ms" in (prune.budget or {}):
            found.append(
                "prune.budget.latency_ms: cannot be reached in rounds; expected method.iterations "
                f"1, got {self.iterations}"
            )
        if self.finetune_between and self.iterations == 1:
            found.append("method.finetune_between: has no effect with iterations 1")
        if isinstance(self.criterion, str):
            found += [
                f"method.{name}: chooses between several criteria, and method.criterion is one"
                for name in ("evaluator", "recalibrate_batches")
                if getattr(self, name) is not None
            ]
            return found
        if len(self.criterion) < 2 or len(set(self.criterion)) < len(self.criterion):
            found.append(
                "method.criterion: expected one by name, or several different ones, got "
                f"{list(self.criterion)}"
            )
        if self.evaluator is None:
            found.append("method.evaluator: expected shared where method.criterion are several")
        if self.iterations > 1:
            found.append(
                "method.iterations: expected 1 where method.criterion are several, got "
                f"{self.iterations}"
            )
        return found


@registry.register("one_shot", options=OneShotOptions)
def one_shot(context: MethodContext, options: OneShotOptions) -> MethodResult:
    """Drop the channels with the lowest scores of any criterion, at once or in rounds.

    A round that has ended is on disk, so an interrupted call goes on after it.

    Raises:
        FastpruneError: fine-tuning between rounds without fine-tuning options, a budget that
            cannot be met, or several criteria and no validation images to choose by.
    """
    if options.finetune_between and context.finetune is None:
        raise FastpruneError(
            "method.finetune_between: borrows its recipe from finetune, which is not given"
        )
    if not isinstance(options.criterion, str):
        return _best(context, options)
    if options.iterations == 1:
        plan, notes = _round(
            context, options, context.model, context.graph, context.prune.budget, 0
        )
        return MethodResult(plan, context.model, notes=notes)
    plan, state = _rounds(context, options)
    trained = state if options.finetune_between else None
    return MethodResult(plan, context.model, trained, notes={"iterations": options.iterations})


def _best(context: MethodContext, options: OneShotOptions) -> MethodResult:
    """Of each criterion's plan the one with the highest accuracy, the first of equals."""
    requests, timed = [], []
    for name in options.all_criteria:
        one = options.model_copy(update={"criterion": name})
        plan, notes = _round(context, one, context.model, context.graph, context.prune.budget, 0)
        requests.append(Request(plan, name=name))
        timed.append(notes)
    evaluator = scorer(context, options.recalibrate_batches)
    outcomes = [outcome for _, outcome in evaluator.outcomes(requests)]
    if all(outcome.diverged for outcome in outcomes):
        raise TrainingError("method.criterion: no criterion's network gives finite numbers")
    best = max(range(len(outcomes)), key=lambda place: (outcomes[place].fitness, -place))
    scores = {name: o.fitness for name, o in zip(options.all_criteria, outcomes, strict=True)}
    told = ", ".join(f"{name} {fitness:.2f} %" for name, fitness in scores.items())
    context.progress.note(
        f"criteria by validation accuracy, not fine-tuned: {told}; taking {requests[best].name}"
    )
    plan = requests[best].plan
    return MethodResult(
        plan,
        context.model,
        pruned_state=recalibrated_state(context, plan, options.recalibrate_batches),
        notes={"criterion": requests[best].name, "fitness": scores, **timed[best]},
    )


def _rounds(
    context: MethodContext, options: OneShotOptions
) -> tuple[PruningPlan, dict[str, Tensor]]:
    """The plan of all rounds in the unpruned network's coordinates, and the last weights."""
    for number in range(1, options.iterations + 1):
        files = _RoundFiles(context.directory, number)
        if files.finished():
            continue
        # Each round starts from the files of the one before, so that going on after an
        # interruption and never having stopped are the same.
        before = _RoundFiles(context.directory, number - 1).plan() if number > 1 else None
        small, graph = context.model, context.graph
        if before is not None:
            small = apply_plan(context.model, context.graph, before)
            restore(small, load_state(_RoundFiles(context.directory, number - 1).weights))
            graph = trace(small, context.example, keep=context.prune.keep)
        budget = _budget_of_round(context, graph, number / options.iterations)
        step = _round(context, options, small, graph, budget, number).plan
        small = apply_plan(small, graph, step)
        if options.finetune_between and number < options.iterations:
            _finetune(context, options, small, number)
        save_state(files.weights, small)
        files.write(step if before is None else PruningPlan.compose(before, step))
    last = _RoundFiles(context.directory, options.iterations)
    return last.plan(), load_state(last.weights)


def _round(
    context: MethodContext,
    options: OneShotOptions,
    model: nn.Module,
    graph: ChannelGraph,
    budget: dict[str, float] | None,
    number: int,
) -> Solved:
    """The plan of a round, the first rank's: another one might score or measure otherwise."""
    return first(partial(_solved, context, options, model, graph, budget, number))


def _solved(
    context: MethodContext,
    options: OneShotOptions,
    model: nn.Module,
    graph: ChannelGraph,
    budget: dict[str, float] | None,
    number: int,
) -> Solved:
    prune = context.prune
    generator = torch.Generator().manual_seed(context.seed + number)
    batches = islice(_batches(context, number), options.batches)
    (criterion,) = options.all_criteria
    scores = criteria.score(criterion, model, graph, batches=batches, generator=generator)

    share = 1 / options.iterations
    ratios = {name: 1 - (1 - ratio) ** share for name, ratio in prune.ratios.items()}
    now = prune.model_copy(update={"budget": budget, "ratios": ratios})
    return plan_of(context, model, scores, now, graph=graph)


def _batches(context: MethodContext, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    return context.splits.train.epoch(number, placement=Placement(torch.device(context.device)))


def _budget_of_round(
    context: MethodContext, graph: ChannelGraph, done: float
) -> dict[str, float] | None:
    """The limits after ``done`` (0 to 1) of the way, as fractions of what the network costs now.

    Costs fall on a geometric path: every round takes the same factor off each metric.
    """
    if context.prune.budget is None:
        return None
    full, now = context.graph.cost().to_dict(), graph.cost().to_dict()
    fractions: dict[str, float] = {}
    for limit in Budget.parse(context.prune.budget).limits:
        whole = limit.absolute(full[limit.metric]) / full[limit.metric]
        fractions[limit.metric] = min(1.0, whole**done * full[limit.metric] / now[limit.metric])
    return fractions


def _finetune(
    context: MethodContext, options: OneShotOptions, small: nn.Module, number: int
) -> None:
    if context.finetune is None:
        return
    whole, epochs = context.finetune, options.finetune_between
    warmup = whole.warmup_epochs * epochs / whole.epochs
    recipe = whole.model_copy(update={"epochs": epochs, "warmup_epochs": warmup})
    folder = context.directory / f"round-{number}"
    folder.mkdir(exist_ok=True)
    fit(
        small,
        context.splits,
        recipe,
        directory=folder,
        seed=context.seed + number,
        device=context.device,
        teacher=context.model,
        progress=context.progress,
        name=f"round {number} of {options.iterations}",
        field="finetune",
    )


class _RoundFiles:
    """Names of what a round leaves; the plan is written last and says that it is done."""

    def __init__(self, directory: Path, number: int) -> None:
        self.weights = directory / f"round-{number}.safetensors"
        self.plan_file = directory / f"round-{number}.json"

    def finished(self) -> bool:
        return self.plan_file.is_file()

    def plan(self) -> PruningPlan:
        return PruningPlan.from_json(json.loads(self.plan_file.read_text()))

    def write(self, plan: PruningPlan) -> None:
        first(lambda: write_json(self.plan_file, plan.to_json()))
