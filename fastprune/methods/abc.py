"""ABCPruner: the number of channels of every layer, found by an artificial bee colony.

Lin et al., *Channel Pruning via Automatic Structure Search*, IJCAI 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprune.criteria import Scores
from fastprune.data import Placement
from fastprune.distributed import alone, first, rank, world
from fastprune.errors import FastpruneError
from fastprune.graph import PruningPlan, trace
from fastprune.graph.units import Units
from fastprune.methods import (
    MethodContext,
    MethodResult,
    Reopen,
    registry,
)
from fastprune.methods._abc_options import AbcOptions
from fastprune.methods._codes import check_code, space_of, units_of
from fastprune.methods._inherit import channel_order, plan_of
from fastprune.methods._scoring import recalibrated_state, scorer
from fastprune.methods._search import Evaluator, search
from fastprune.methods._trials import Trial, TrialLog, counts, steps_in_common
from fastprune.search import BeeColony, RandomSearch, SearchAlgorithm
from fastprune.training import checkpoint
from fastprune.training._crew import Crew
from fastprune.training._estimate import epoch_seconds
from fastprune.training._over_ranks import OverRanks
from fastprune.training.evaluator import FitnessOptions, TrainedEvaluator
from fastprune.training.progress import duration

__all__ = ["AbcOptions", "abc"]

TRIALS = "trials.jsonl"
ORDER = "order.pt"

MakePlan = Callable[[tuple[int, ...]], PruningPlan]


@registry.register("abc", options=AbcOptions)
def abc(context: MethodContext, options: AbcOptions) -> MethodResult:
    """Search the share kept of every layer by an artificial bee colony.

    Each candidate is trained briefly and measured, or measured with the weights it inherits.

    Raises:
        FastpruneError: a code of another network, a budget that no code meets, no validation
            images to measure fitness on.
    """
    units = units_of(options.units, context.graph, context.network)
    make_plan = partial(_plan, context, units, _order(context, options))
    if options.code is not None:
        check_code(options.code, context.graph, context.prune.budget, units)
        given = {"code": list(options.code)}
        return MethodResult(make_plan(options.code), context.model, notes=given)
    algorithm = _algorithm(context, options, units)
    log = TrialLog(context.directory / TRIALS)
    run = _scored if options.evaluator == "shared" else _trained
    best, state = run(context, options, algorithm, make_plan, log)
    notes: dict[str, Any] = {
        "code": list(best.code),
        "fitness": best.fitness,
        **counts(list(log), "scored" if options.evaluator == "shared" else "trained"),
    }
    return MethodResult(
        make_plan(best.code),
        context.model,
        pruned_state=state,
        notes=notes,
        files=(context.directory / TRIALS,),
    )


def _trained(
    context: MethodContext,
    options: AbcOptions,
    algorithm: SearchAlgorithm,
    make_plan: MakePlan,
    log: TrialLog,
) -> tuple[Trial, dict[str, Tensor]]:
    """The best candidate, each trained, and its weights."""
    ranks = world()
    evaluator = _evaluator(context, options)
    if rank() == 0:
        with alone():
            _estimate(context, options, algorithm, log, options.parallel * ranks)
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
    return best, evaluator.trained(make_plan(best.code))


def _scored(
    context: MethodContext,
    options: AbcOptions,
    algorithm: SearchAlgorithm,
    make_plan: MakePlan,
    log: TrialLog,
) -> tuple[Trial, dict[str, Tensor]]:
    """The same with the weights that candidates inherit."""
    batches = options.recalibrate_batches
    evaluator = scorer(context, batches, options.fitness_split, options.fitness_metric)
    best = search(
        algorithm,
        make_plan,
        context.graph,
        evaluator,
        log,
        forget=lambda digests: None,
        progress=context.progress,
    )
    if share := steps_in_common(list(log)):
        context.progress.note(f"shared evaluation: {share:.0%} of the steps were in common")
    return best, recalibrated_state(context, make_plan(best.code), batches)


def _order(context: MethodContext, options: AbcOptions) -> Scores:
    """Scores of channels, the same for the whole search.

    Kept, since a criterion that looks at data may rank otherwise when the search goes on: on a
    GPU, or with images read in another way. Codes would then mean other networks.
    """
    kept = context.directory / ORDER
    if not kept.is_file():
        # The first rank's, which others might rank otherwise.
        first(lambda: checkpoint.write(kept, _new_order(context, options)))
    return checkpoint.read(kept)


def _new_order(context: MethodContext, options: AbcOptions) -> dict[str, Tensor]:
    placement = Placement(context.device)
    batches = islice(context.splits.train.epoch(0, placement=placement), options.batches)
    scores = channel_order(
        options.inherit, context.model, context.graph, seed=context.seed, batches=batches
    )
    return {name: tensor.cpu() for name, tensor in scores.items()}


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
    """Who trains: this process, or several that each open network and data anew, on every rank."""
    if options.parallel == 1:
        yield evaluator if world() == 1 else OverRanks(evaluator, _macs(context))
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
    with closing(Crew(make, options.parallel, say=context.progress.note)) as crew:
        yield crew if world() == 1 else OverRanks(crew, _macs(context))


def _macs(context: MethodContext) -> Callable[[PruningPlan], float]:
    return lambda plan: context.graph.cost(plan).macs


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
    at_a_time: int,
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
            f"epochs of {train.images:,} images: about {duration(left * each / at_a_time)} "
            f"({source})"
        )
