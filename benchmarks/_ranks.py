"""A search's candidates on two ranks, and what of their processor time was of use."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.multiprocessing as mp
from _population import CPU, EXAMPLE, RECALIBRATED

from fastprune import distributed, models, trace
from fastprune.data import DataOptions, Splits, load
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods._inherit import channel_order, plan_of
from fastprune.search import BeeColony, Space
from fastprune.training import TrainingOptions
from fastprune.training._over_ranks import OverRanks
from fastprune.training.evaluator import FitnessOptions, Outcome, Request, TrainedEvaluator
from fastprune.training.scored import ScoredEvaluator
from fastprune.training.shared import inherited_subnets

__all__ = ["Phases", "on_ranks", "shared_phases", "trained_phases"]

WORLD = 2


def digits() -> Splits:
    """Few images: what is shared out is whole candidates, whatever each takes."""
    options = DataOptions(
        batch_size=48, eval_batch_size=48, validation=96, train_limit=288, test_limit=48
    )
    return load(options, 0)


class Phases(NamedTuple):
    """Processor seconds of each phase of a search, in one process.

    Attributes:
        whole: of the phase; waiting takes none.
        useful: of training and measuring candidates.
    """

    whole: list[float]
    useful: list[float]


def populations(graph: ChannelGraph, scores: dict[str, torch.Tensor]) -> Iterator[list[Request]]:
    """The phases of a colony as ABCPruner's configurations have it: ten sources, two numbers
    changed, with any fitness."""
    space = Space((1,) * len(graph.groups), (9,) * len(graph.groups))
    colony = BeeColony(
        space, 0, food_number=10, max_cycle=1, food_limit=5, honeychange_num=2, order="batched"
    )
    while asked := colony.ask():
        codes = [candidate.code for candidate in asked]
        yield [Request(_plan(graph, scores, code)) for code in dict.fromkeys(codes)]
        for candidate in asked:
            colony.tell(candidate.number, float(sum(candidate.code)))


def _plan(
    graph: ChannelGraph, scores: dict[str, torch.Tensor], code: Sequence[int]
) -> PruningPlan:
    pairs = zip(graph.groups, code, strict=True)
    widths = {group.name: max(1, group.channels * tenth // 10) for group, tenth in pairs}
    return plan_of(graph, widths, scores)


def trained_phases() -> Phases:
    """Each candidate is trained for an epoch by the rank that is free first."""
    torch.manual_seed(0)
    model = models.build("resnet20_cifar", depth=8).eval()
    graph = trace(model, EXAMPLE)
    scores = channel_order("l1", model, graph, seed=0)
    recipe = TrainingOptions(epochs=1, lr=0.01, schedule="constant", precision="fp32")
    folder = Path(tempfile.gettempdir()) / f"fastprune-ranks-{os.getpid()}"
    plain = TrainedEvaluator(
        model, graph, digits(), FitnessOptions(recipe), directory=folder, seed=0, device=CPU
    )
    watched = _Watched(plain)
    evaluator = OverRanks(watched, lambda plan: graph.cost(plan).macs)
    whole, useful = [], []
    for requests in populations(graph, scores):
        watched.spent = 0.0
        begun = time.process_time()
        list(evaluator.outcomes(requests))
        whole.append(time.process_time() - begun)
        useful.append(watched.spent)
        plain.forget({request.plan.digest for request in requests})
    return Phases(whole, useful)


def shared_phases() -> Phases:
    """Candidates are measured with inherited weights; ranks take those most in common."""
    torch.manual_seed(0)
    model = models.build("resnet20_cifar").eval()
    graph = trace(model, EXAMPLE)
    scores = channel_order("l1", model, graph, seed=0)
    evaluator = ScoredEvaluator(
        partial(inherited_subnets, model, graph),
        EXAMPLE,
        digits(),
        batches=RECALIBRATED,
        device=CPU,
        cost=lambda plan: graph.cost(plan).macs,
    )
    whole = []
    for requests in populations(graph, scores):
        begun = time.process_time()
        list(evaluator.outcomes(requests))
        whole.append(time.process_time() - begun)
    return Phases(whole, whole)


class _Watched:
    """An evaluator, and what its trainings take."""

    def __init__(self, evaluator: TrainedEvaluator) -> None:
        self._evaluator = evaluator
        self.spent = 0.0

    def outcomes(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Outcome]]:
        for request in requests:
            begun = time.process_time()
            outcome = self._evaluator.outcome(request)
            self.spent += time.process_time() - begun
            yield request, outcome


def on_ranks(work: Callable[[], Phases]) -> list[Phases]:
    """What each of two ranks says of its phases."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(_rank, (port, work, results), nprocs=WORLD, start_method="spawn")
    found = dict(results.get() for _ in range(WORLD))
    return [found[number] for number in range(WORLD)]


def _rank(number: int, port: int, work: Callable[[], Phases], results: mp.SimpleQueue) -> None:
    with _as_torchrun(number, port), distributed.started(600):
        distributed.join(CPU)
        torch.set_num_threads(1)
        # What is loaded and compiled once takes longer than a phase.
        work()
        results.put((number, work()))


@contextmanager
def _as_torchrun(number: int, port: int) -> Iterator[None]:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    yield
