"""The loop between a search algorithm, which knows integers, and whoever evaluates candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from fastprune.errors import CheckpointError, TrainingError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods._trials import Trial, TrialLog
from fastprune.search import Candidate, SearchAlgorithm
from fastprune.training.evaluator import Outcome, Request
from fastprune.training.progress import Progress

__all__ = ["Evaluator", "search"]

# So many at first without a finite loss are the recipe's fault; a few, drawn at random, may be
# their own.
_HOPELESS = 10


class Evaluator(Protocol):
    """Who turns candidates into outcomes."""

    def outcomes(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Outcome]]:
        """The outcome of each request, as they come to be known."""


def search(
    algorithm: SearchAlgorithm,
    plan_of: Callable[[tuple[int, ...]], PruningPlan],
    graph: ChannelGraph,
    evaluator: Evaluator,
    log: TrialLog,
    *,
    forget: Callable[[set[str]], object],
    progress: Progress,
    together: bool = False,
) -> Trial:
    """The best candidate of a whole search; one that was interrupted goes on.

    A plan that was evaluated before is not evaluated again.

    Args:
        algorithm: a new one; it is told again what the log holds.
        plan_of: a code to its plan.
        graph: of the unpruned network.
        evaluator: of plans not known yet.
        log: of earlier trials; those to come are added.
        forget: called with digests of plans whose trainings are of no use any more.
        progress: shows how far it is.
        together: outcomes of one call of the evaluator follow from each other, as in racing: they
            are written down at once, so that a search that goes on has all of them or none.

    Raises:
        CheckpointError: the log is of another search.
        TrainingError: the first ten candidates, or all, came to no finite numbers.
    """
    strange = [number for number in log.trials if number >= algorithm.evaluations]
    if strange:
        raise CheckpointError(
            f"trials.jsonl: has a candidate {strange[0]}, and this search ends before it; use "
            "--fresh-search to start the search anew"
        )
    spared = log.best.plan if log.best else None
    forget({trial.plan for trial in log} - {spared})
    title = progress.start("search", algorithm.evaluations, "candidates", done=len(log))
    with title as task:
        while asked := algorithm.ask():
            numbers = {candidate.number for candidate in asked}
            if (
                together
                and not numbers.isdisjoint(log.trials)
                and not numbers <= log.trials.keys()
            ):
                # The rest was cut off with a damaged line, and would be held against itself alone.
                log.cut(min(numbers))
            trials = _trials(asked, plan_of, graph, evaluator, log)
            for known in [list(trials)] if together else ([trial] for trial in trials):
                new = {trial.number for trial in known} - log.trials.keys()
                log.add(*(trial for trial in known if trial.number in new))
                for trial in known:
                    best = log.best or trial
                    if trial.number in new:
                        forget({trial.plan, spared or trial.plan} - {best.plan})
                        spared = best.plan
                        task.advance(1, best=best.fitness)
                    algorithm.tell(trial.number, trial.fitness)
                _check_finite(log, algorithm.done)
    if log.best is None:
        raise ValueError("the search asked about no candidate")
    return log.best


def _check_finite(log: TrialLog, done: bool) -> None:
    evaluated = [trial for trial in log if trial.repeats is None]
    if (done or len(evaluated) >= _HOPELESS) and all(trial.diverged for trial in evaluated):
        raise TrainingError(
            f"search: none of the first {len(evaluated)} candidates came to finite "
            "numbers; where they are trained, try a lower lr, warmup_epochs or clip_grad_norm"
        )


def _trials(
    asked: Sequence[Candidate],
    plan_of: Callable[[tuple[int, ...]], PruningPlan],
    graph: ChannelGraph,
    evaluator: Evaluator,
    log: TrialLog,
) -> Iterator[Trial]:
    """A trial for each candidate: from the log, by an equal plan, or evaluated."""
    waiting: dict[str, list[Candidate]] = {}
    requests = []
    for candidate in asked:
        if candidate.number in log.trials:
            yield _checked(log.trials[candidate.number], candidate)
            continue
        plan = plan_of(candidate.code)
        known = log.of_plan(plan.digest)
        if known is not None:
            yield _trial(candidate, plan, graph, _repeated(known), known)
        elif plan.digest in waiting:
            waiting[plan.digest].append(candidate)
        else:
            waiting[plan.digest] = [candidate]
            rival = None if candidate.rival is None else log.trials[candidate.rival].plan
            name = f"candidate {candidate.number + 1} ({candidate.phase})"
            requests.append(Request(plan, rival, name))
    for request, outcome in evaluator.outcomes(requests):
        first, *others = waiting[request.plan.digest]
        made = _trial(first, request.plan, graph, outcome)
        yield made
        for other in others:
            yield _trial(other, request.plan, graph, _repeated(made), made)


def _trial(
    candidate: Candidate,
    plan: PruningPlan,
    graph: ChannelGraph,
    outcome: Outcome,
    repeats: Trial | None = None,
) -> Trial:
    cost = graph.cost(plan)
    return Trial(
        number=candidate.number,
        phase=candidate.phase,
        code=candidate.code,
        widths=plan.widths(),
        cost={"macs": cost.macs, "params": cost.params, "channels": cost.channels},
        plan=plan.digest,
        fitness=outcome.fitness,
        epochs=outcome.epochs,
        seconds=round(outcome.seconds, 3),
        repeats=None if repeats is None else repeats.number,
        stopped=outcome.stopped,
        diverged=outcome.diverged,
        images=outcome.images,
        common=None if outcome.common is None else round(outcome.common, 4),
    )


def _repeated(known: Trial) -> Outcome:
    return Outcome(
        known.fitness,
        epochs=0,
        seconds=0.0,
        stopped=known.stopped,
        diverged=known.diverged,
        images=None if known.images is None else 0,
    )


def _checked(trial: Trial, candidate: Candidate) -> Trial:
    if trial.code != candidate.code:
        raise CheckpointError(
            f"trials.jsonl: candidate {trial.number} is {list(trial.code)} there, and this search "
            f"asks about {list(candidate.code)}; use --fresh-search to start the search anew"
        )
    return trial
