"""The loop between a search algorithm and whoever evaluates, with nothing trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastprune.errors import CheckpointError, TrainingError
from fastprune.graph import PruningPlan, trace
from fastprune.methods._inherit import plan_of
from fastprune.methods._search import search
from fastprune.methods._trials import Trial, TrialLog
from fastprune.search import BeeColony, RandomSearch, SearchAlgorithm, Space
from fastprune.testing.methods import TinyResidual
from fastprune.training.evaluator import Outcome, Request
from fastprune.training.progress import SilentProgress

GRAPH = trace(TinyResidual(), torch.zeros(1, 3, 32, 32))
FIRST = {group.name: torch.arange(group.channels, 0, -1.0) for group in GRAPH.groups}


def make_plan(code: tuple[int, ...]) -> PruningPlan:
    groups = zip(GRAPH.groups, code, strict=True)
    return plan_of(GRAPH, {g.name: max(g.channels * k // 10, 1) for g, k in groups}, FIRST)


def colony(seed: int = 0, order: str = "batched") -> BeeColony:
    space = Space((1,) * len(GRAPH.groups), (9,) * len(GRAPH.groups))
    return BeeColony(space, seed, food_number=4, max_cycle=3, food_limit=2, order=order)


def fitness_of(plan: PruningPlan) -> float:
    first, *_, last = plan.widths().values()
    return 100 / (1 + (first - 5) ** 2 + (last - 3) ** 2)


class Killed(Exception):
    pass


class Fake:
    """Knows every fitness; gives outcomes in order, or in any, and may be killed after some."""

    def __init__(
        self,
        *,
        shuffled: bool = False,
        kill_after: int | None = None,
        diverges: Callable[[PruningPlan], bool] = lambda plan: False,
    ) -> None:
        self.requests: list[Request] = []
        self.shuffled, self.kill_after, self.diverges = shuffled, kill_after, diverges
        self.random = random.Random(0)

    def outcomes(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Outcome]]:
        given = list(requests)
        if self.shuffled:
            self.random.shuffle(given)
        for request in given:
            if len(self.requests) == self.kill_after:
                raise Killed
            self.requests.append(request)
            bad = self.diverges(request.plan)
            found = 0.0 if bad else fitness_of(request.plan)
            yield request, Outcome(found, epochs=2, seconds=0.1, diverged=bad)


class Store:
    """What trainings leave: there once evaluated, until forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def forget(self, digests: set[str]) -> None:
        self.forgotten += sorted(digests)


def run(
    path: Path,
    evaluator: Fake | None = None,
    algorithm: SearchAlgorithm | None = None,
    store: Store | None = None,
    together: bool = False,
) -> Trial:
    return search(
        algorithm or colony(),
        make_plan,
        GRAPH,
        evaluator or Fake(),
        TrialLog(path),
        forget=(store or Store()).forget,
        progress=SilentProgress(),
        together=together,
    )


def test_every_candidate_is_a_trial_and_the_best_is_given(tmp_path: Path) -> None:
    best = run(tmp_path / "t")
    trials = list(TrialLog(tmp_path / "t"))

    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert best == max(trials, key=lambda trial: (trial.fitness, -trial.number))
    for trial in trials:
        plan = make_plan(trial.code)
        cost = GRAPH.cost(plan)
        assert trial.plan == plan.digest
        assert trial.widths == plan.widths()
        assert trial.cost == {"macs": cost.macs, "params": cost.params, "channels": cost.channels}
        assert trial.fitness == fitness_of(plan)


def test_no_plan_is_evaluated_twice_not_even_within_a_phase(tmp_path: Path) -> None:
    evaluator = Fake()
    run(tmp_path / "t", evaluator)
    digests = [request.plan.digest for request in evaluator.requests]
    trials = list(TrialLog(tmp_path / "t"))
    repeated = [trial for trial in trials if trial.repeats is not None]

    assert len(set(digests)) == len(digests) == len(trials) - len(repeated)
    assert repeated
    for trial in repeated:
        assert trial.repeats < trial.number
        assert trial.fitness == trials[trial.repeats].fitness
        assert trial.plan == trials[trial.repeats].plan
        assert trials[trial.repeats].repeats is None
        assert (trial.epochs, trial.seconds) == (0, 0.0)


def test_equal_candidates_of_one_batch_are_evaluated_once(tmp_path: Path) -> None:
    size = len(GRAPH.groups)
    same = RandomSearch(Space((5,) * size, (5,) * size), 0, evaluations=3)
    evaluator = Fake()
    best = run(tmp_path / "t", evaluator, same)

    assert [request.name for request in evaluator.requests] == ["candidate 1 (random)"]
    assert [trial.repeats for trial in TrialLog(tmp_path / "t")] == [None, 0, 0]
    assert best.number == 0


@pytest.mark.parametrize("order", ["batched", "published"])
def test_outcomes_in_any_order_give_the_same_search(tmp_path: Path, order: str) -> None:
    whole = run(tmp_path / "a", Fake(), colony(order=order))
    other = run(tmp_path / "b", Fake(shuffled=True), colony(order=order))

    assert other == whole
    assert list(TrialLog(tmp_path / "b")) == list(TrialLog(tmp_path / "a"))


@pytest.mark.parametrize("shuffled", [False, True])
def test_killed_before_any_trial_it_ends_the_same(tmp_path: Path, shuffled: bool) -> None:
    evaluator = Fake(shuffled=shuffled)
    whole = run(tmp_path / "whole", evaluator)
    for kill_after in range(len(evaluator.requests)):
        path = tmp_path / str(kill_after)
        with pytest.raises(Killed):
            run(path, Fake(shuffled=shuffled, kill_after=kill_after))
        rest = Fake(shuffled=shuffled)
        assert run(path, rest) == whole
        assert len(rest.requests) == len(evaluator.requests) - kill_after
        assert list(TrialLog(path)) == list(TrialLog(tmp_path / "whole"))


def test_a_search_that_ended_asks_nobody(tmp_path: Path) -> None:
    whole, evaluator = run(tmp_path / "t"), Fake()

    assert run(tmp_path / "t", evaluator) == whole
    assert evaluator.requests == []


def test_the_rival_is_named_by_its_plan(tmp_path: Path) -> None:
    evaluator, algorithm = Fake(), colony()
    rivals = {}
    ask = algorithm.ask

    def asking() -> list[object]:
        found = ask()
        rivals.update({c.number: c.rival for c in found})
        return found

    algorithm.ask = asking
    run(tmp_path / "t", evaluator, algorithm)
    trials = list(TrialLog(tmp_path / "t"))
    for request in evaluator.requests:
        number = int(request.name.split()[1]) - 1
        rival = rivals[number]
        assert request.rival == (None if rival is None else trials[rival].plan)
        assert trials[number].plan == request.plan.digest
    assert any(request.rival for request in evaluator.requests)


def test_outcomes_that_follow_from_each_other_are_there_together_or_not(tmp_path: Path) -> None:
    whole, one_by_one = Fake(), Fake()
    best = run(tmp_path / "a", whole, together=True)
    assert run(tmp_path / "b", one_by_one) == best
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    for kill_after in (2, 5, 6, 7):
        (tmp_path / "c").unlink(missing_ok=True)
        with pytest.raises(Killed):
            run(tmp_path / "c", Fake(kill_after=kill_after), together=True)
        there, trials = len(TrialLog(tmp_path / "c")), list(TrialLog(tmp_path / "a"))
        # Whole phases alone.
        assert there == 0 or trials[there - 1].phase != trials[there].phase
    again = Fake()
    assert run(tmp_path / "c", again, together=True) == best
    known = sum(trial.repeats is None for trial in trials[:there])
    assert again.requests == whole.requests[known:]
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_the_log_of_another_search_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "t")

    with pytest.raises(CheckpointError, match=r"^trials\.jsonl: candidate 0 is \[.*--fresh-sea"):
        run(tmp_path / "t", algorithm=colony(seed=1))


def test_a_search_that_only_diverges_is_refused(tmp_path: Path) -> None:
    evaluator = Fake(diverges=lambda plan: True)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"^search: none of the first 10 cand"):
            run(tmp_path / "t", evaluator)
    assert len(evaluator.requests) == 10


@pytest.mark.parametrize("order", ["batched", "published"])
def test_a_search_goes_on_where_only_the_first_ones_diverge(tmp_path: Path, order: str) -> None:
    seen: list[str] = []

    def diverges(plan: PruningPlan) -> bool:
        seen.append(plan.digest)
        return len(set(seen)) <= 4

    best = run(tmp_path / "t", Fake(diverges=diverges), algorithm=colony(order=order))

    assert best.fitness > 0
    assert sum(trial.diverged for trial in TrialLog(tmp_path / "t")) >= 4


def test_a_log_with_more_candidates_than_the_search_has_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "t")
    log = TrialLog(tmp_path / "t")
    assert log.best is not None
    log.add(replace(log.best, number=colony().evaluations))

    with pytest.raises(
        CheckpointError, match=r"^trials\.jsonl: has a candidate \d+, .*--fresh-se"
    ):
        run(tmp_path / "t")


def test_some_that_diverge_are_candidates_of_no_fitness(tmp_path: Path) -> None:
    worst = min(make_plan(c.code).digest for c in colony().ask())
    best = run(tmp_path / "t", Fake(diverges=lambda plan: plan.digest == worst))
    diverged = [trial for trial in TrialLog(tmp_path / "t") if trial.diverged]

    assert diverged
    assert all(trial.fitness == 0 and trial.plan == worst for trial in diverged)
    assert best.fitness > 0


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_a_training_left_is_forgotten_but_for_the_best(
    tmp_path: Path, shuffled: bool
) -> None:
    evaluator, store = Fake(shuffled=shuffled), Store()
    best = run(tmp_path / "t", evaluator, store=store)
    trained = {request.plan.digest for request in evaluator.requests}

    assert set(store.forgotten) == trained - {best.plan}


def test_what_a_kill_kept_from_being_forgotten_is_forgotten_on_going_on(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "t", Fake(kill_after=6))
    log, store = TrialLog(tmp_path / "t"), Store()
    assert log.best is not None
    with pytest.raises(Killed):
        run(tmp_path / "t", Fake(kill_after=0), store=store)

    assert set(store.forgotten) == {trial.plan for trial in log} - {log.best.plan}
