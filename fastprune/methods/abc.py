"""ABCPruner: the number of channels of every layer, found by an artificial bee colony.

Lin et al., *Channel Pruning via Automatic Structure Search*, IJCAI 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from fastprune.criteria import Scores
from fastprune.data import Placement
from fastprune.errors import FastpruneError, PlanError
from fastprune.graph import ChannelGraph, PruningPlan, trace
from fastprune.graph.units import FULL, Units, parse_code
from fastprune.methods import (
    MethodContext,
    MethodOptions,
    MethodResult,
    PruneOptions,
    Reopen,
    registry,
)
from fastprune.methods._codes import MakeUnits, check_code, reach_of, space_of, units_of
from fastprune.methods._inherit import channel_order, check_rule, plan_of
from fastprune.methods._search import Evaluator, search
from fastprune.methods._trials import TrialLog
from fastprune.models import Network
from fastprune.search import BeeColony, RandomSearch, SearchAlgorithm
from fastprune.training import TrainingOptions, checkpoint
from fastprune.training._crew import Crew
from fastprune.training._estimate import epoch_seconds
from fastprune.training.evaluator import FitnessOptions, TrainedEvaluator
from fastprune.training.progress import duration

__all__ = ["AbcOptions", "abc"]

TRIALS = "trials.jsonl"
ORDER = "order.pt"


class AbcOptions(MethodOptions):
    """Options of ABCPruner; names of the search as the paper's code has them.

    Attributes:
        units: what one number of a code governs: the network family's own table (``family``), a
            channel group each (``group``), or all groups of feature maps of one size (``stage``);
            ``auto`` is ``family`` where the network has a table, and ``group`` elsewhere.
        code: tenths kept of every unit, 1 to 10; given, nothing is searched.
        inherit: which channels of the trained network a candidate begins with: ``first``,
            ``random`` (one order a run), ``l1`` or any other criterion.
        batches: training batches shown to a criterion that looks at data.
        search: ``bee_colony``, or ``random`` codes, the control, as many of them.
        order: ``batched`` asks for a whole phase's candidates at a time, from the sources as the
            phase began; ``published`` for one at a time, each from the sources as they are.
        food_number: sources F of the colony.
        max_cycle: rounds of employed bees, onlookers and scouts. Candidates are F + rounds · (2F
            + 1) at most.
        food_limit: a source that got no better so many times is drawn afresh.
        honeychange_num: numbers of a code that a neighbour has changed; all of them where there
            are fewer.
        max_preserve: highest tenth a code may have.
        calfitness_epoch: epochs that each candidate is trained.
        fitness: recipe of that training; ``epochs`` is calfitness_epoch's to say. None: SGD at
            0.01, momentum 0.9, weight decay 5e-4, without a schedule.
        fitness_split: images that fitness is the accuracy on; the test images have to be asked for
            by name.
        fitness_metric: which accuracy.
        racing: give a candidate up after an epoch by which a paired test against its source says
            that it will not beat it.
        parallel: candidates at a time, each in a process of its own.
    """

    name: Literal["abc"] = "abc"
    units: Literal["auto", "family", "group", "stage"] = "auto"
    code: Annotated[tuple[int, ...] | None, BeforeValidator(lambda given: _code(given))] = None
    inherit: str = "l1"
    batches: int = Field(default=10, ge=1)
    search: Literal["bee_colony", "random"] = "bee_colony"
    order: Literal["batched", "published"] = "batched"
    food_number: int = Field(default=10, ge=2)
    max_cycle: int = Field(default=10, ge=1)
    food_limit: int = Field(default=5, ge=1)
    honeychange_num: int = Field(default=2, ge=1)
    max_preserve: int = Field(default=9, ge=1, le=FULL)
    calfitness_epoch: int = Field(default=2, ge=1)
    fitness: TrainingOptions | None = None
    fitness_split: Literal["validation", "test"] = "validation"
    fitness_metric: Literal["top1", "top5"] = "top1"
    racing: bool = False
    parallel: int = Field(default=1, ge=1)

    @field_validator("fitness", mode="before")
    @classmethod
    def _epochs(cls, given: Any, info: ValidationInfo) -> Any:
        # Filled in here, so that the options as they are written down say what is done and can
        # be read again.
        if isinstance(given, TrainingOptions):
            given = given.model_dump(exclude_unset=True)
        if isinstance(given, Mapping) and "calfitness_epoch" in info.data:
            return {"epochs": info.data["calfitness_epoch"], **given}
        return given

    @property
    def recipes(self) -> dict[str, TrainingOptions]:
        return {"fitness": self.recipe} if self.code is None else {}

    @property
    def needs_validation(self) -> bool:
        return self.code is None and self.fitness_split == "validation"

    @property
    def recipe(self) -> TrainingOptions:
        """How each candidate is trained."""
        return self.fitness or TrainingOptions(
            epochs=self.calfitness_epoch, lr=0.01, schedule="constant"
        )

    def problems(self, prune: PruneOptions) -> list[str]:
        found = []
        others = PruneOptions(keep=prune.keep, budget=prune.budget).model_dump()
        found += [
            f"prune.{name}: not a part of ABCPruner, whose widths are tenths (method.code)"
            for name, value in prune.model_dump().items()
            if value != others[name]
        ]
        if prune.budget and "latency_ms" in prune.budget:
            found.append(
                "prune.budget.latency_ms: cannot be known of a code without building its network; "
                "expected macs, params, channels or size_mb"
            )
        try:
            check_rule(self.inherit)
        except FastpruneError as error:
            found.append(f"method.{error}")
        if self.racing and self.calfitness_epoch < 2:
            found.append(
                "method.racing: gives up between epochs; expected calfitness_epoch from 2 on"
            )
        return found + _recipe_problems(self)

    def check(self, graph: ChannelGraph, prune: PruneOptions, network: Network | None) -> str:
        governed = units_of(self.units, graph, _table(network))
        if self.code is None:
            space_of(self.max_preserve, graph, prune.budget, governed)
        else:
            check_code(self.code, graph, prune.budget, governed)
        return reach_of(self.max_preserve if self.code is None else FULL, graph, governed)


def _recipe_problems(options: AbcOptions) -> list[str]:
    recipe, found = options.fitness, []
    if recipe is None:
        return []
    if recipe.epochs != options.calfitness_epoch:
        found.append(
            f"method.fitness.epochs: got {recipe.epochs}, but method.calfitness_epoch is "
            f"{options.calfitness_epoch}; expected one of the two"
        )
    if recipe.early_stop or recipe.keep == "best":
        field = "early_stop" if recipe.early_stop else "keep"
        found.append(
            f"method.fitness.{field}: looks at validation images, which fitness is measured on; "
            "expected none"
        )
    if recipe.compile:
        found.append(
            "method.fitness.compile: every candidate is another network and would be compiled "
            "anew; expected false"
        )
    if recipe.distill:
        found.append("method.fitness.distill: candidates are trained without a teacher")
    return found


@registry.register("abc", options=AbcOptions)
def abc(context: MethodContext, options: AbcOptions) -> MethodResult:
    """Search the share kept of every layer by an artificial bee colony, training each candidate.

    Raises:
        FastpruneError: a code of another network, a budget that no code meets, no validation
            images to measure fitness on.
    """
    units = units_of(options.units, context.graph, _table(context.network))
    make_plan = partial(_plan, context, units, _order(context, options))
    if options.code is not None:
        check_code(options.code, context.graph, context.prune.budget, units)
        given = {"code": list(options.code)}
        return MethodResult(make_plan(options.code), context.model, notes=given)
    algorithm = _algorithm(context, options, units)
    log = TrialLog(context.directory / TRIALS)
    evaluator = _evaluator(context, options)
    _estimate(context, options, algorithm, log)
    with _at_a_time(context, options, evaluator) as trainers:
        best = search(
            algorithm,
            make_plan,
            context.graph,
            trainers,
            log,
            forget=evaluator.forget,
            progress=context.progress,
        )
    trials = list(log)
    notes: dict[str, Any] = {
        "code": list(best.code),
        "fitness": best.fitness,
        "candidates": len(trials),
        "trained": sum(trial.repeats is None for trial in trials),
        "given_up": sum(trial.stopped and trial.repeats is None for trial in trials),
        "diverged": sum(trial.diverged and trial.repeats is None for trial in trials),
    }
    plan = make_plan(best.code)
    return MethodResult(
        plan,
        context.model,
        pruned_state=evaluator.trained(plan),
        notes=notes,
        files=(context.directory / TRIALS,),
    )


def _table(network: Network | None) -> MakeUnits | None:
    return None if network is None else network.units


def _code(given: Any) -> Any:
    if given is None:
        return None
    try:
        return parse_code(given)
    except PlanError as error:
        raise ValueError(str(error).removeprefix("code: ")) from None


def _order(context: MethodContext, options: AbcOptions) -> Scores:
    """Scores of channels, the same for the whole search.

    Kept, since a criterion that looks at data may rank otherwise when the search goes on: on a
    GPU, or with images read in another way. Codes would then mean other networks.
    """
    kept = context.directory / ORDER
    if kept.is_file():
        return checkpoint.read(kept)
    placement = Placement(context.device)
    batches = islice(context.splits.train.epoch(0, placement=placement), options.batches)
    scores = channel_order(
        options.inherit, context.model, context.graph, seed=context.seed, batches=batches
    )
    checkpoint.write(kept, {name: tensor.cpu() for name, tensor in scores.items()})
    return scores


def _plan(
    context: MethodContext, units: Units, order: Scores, code: tuple[int, ...]
) -> PruningPlan:
    return plan_of(context.graph, units.widths(context.graph, code), order)


def _algorithm(context: MethodContext, options: AbcOptions, units: Units) -> SearchAlgorithm:
    space = space_of(options.max_preserve, context.graph, context.prune.budget, units)
    colony = BeeColony(
        space,
        context.seed,
        food_number=options.food_number,
        max_cycle=options.max_cycle,
        food_limit=options.food_limit,
        honeychange_num=min(options.honeychange_num, space.dimensions),
        order=options.order,
    )
    if options.search == "bee_colony":
        return colony
    return RandomSearch(space, context.seed, evaluations=colony.evaluations)


def _fitness(options: AbcOptions) -> FitnessOptions:
    return FitnessOptions(
        options.recipe, options.fitness_split, options.fitness_metric, options.racing
    )


def _evaluator(context: MethodContext, options: AbcOptions) -> TrainedEvaluator:
    return TrainedEvaluator(
        context.model,
        context.graph,
        context.splits,
        _fitness(options),
        directory=context.directory,
        seed=context.seed,
        device=context.device,
        progress=context.progress,
    )


@contextmanager
def _at_a_time(
    context: MethodContext, options: AbcOptions, evaluator: TrainedEvaluator
) -> Iterator[Evaluator]:
    """Who trains: this process, or several that each open network and data anew."""
    if options.parallel == 1:
        yield evaluator
        return
    if context.reopen is None:
        raise FastpruneError(
            "method.parallel: network and data cannot be opened again; expected 1"
        )
    make = partial(
        _reopened,
        context.reopen,
        keep=context.prune.keep,
        example=tuple(context.example.shape),
        options=options,
        directory=context.directory,
        seed=context.seed,
        device=context.device,
    )
    with closing(Crew(make, options.parallel)) as crew:
        yield crew


def _reopened(
    reopen: Reopen,
    *,
    keep: tuple[str, ...],
    example: tuple[int, ...],
    options: AbcOptions,
    directory: Path,
    seed: int,
    device: torch.device,
) -> TrainedEvaluator:
    model, splits = reopen()
    graph = trace(model, torch.zeros(example, device=device), keep=keep)
    return TrainedEvaluator(
        model, graph, splits, _fitness(options), directory=directory, seed=seed, device=device
    )


def _estimate(
    context: MethodContext,
    options: AbcOptions,
    algorithm: SearchAlgorithm,
    log: TrialLog,
) -> None:
    """Says how long the search may take: from what it took so far, or from a measured epoch."""
    train, left = context.splits.train, algorithm.evaluations - len(log)
    trained = [trial.seconds for trial in log if trial.repeats is None]
    if trained:
        each = sum(trained) / len(trained)
        source = f"as the {len(trained)} trained so far took"
    else:
        epoch = epoch_seconds(context.model, train, options.recipe, context.device)
        measured = context.splits.parts[options.fitness_split]
        # A forward pass is about a third of a training step.
        each = epoch * (options.calfitness_epoch + measured.images / train.images / 3)
        source = f"an epoch of the unpruned network takes {epoch:.3g} s here"
    if left:
        context.progress.note(
            f"search: {left} candidates at most, each trained for {options.calfitness_epoch} "
            f"epochs of {train.images:,} images: about {duration(left * each / options.parallel)} "
            f"({source})"
        )
