"""A population measured together against one candidate after the other, both recalibrated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from _interleave import compare
from _population import CPU, EXAMPLE, RECALIBRATED, K, digits, evolution
from numpy.typing import NDArray

from fastprune import apply_plan, models, trace
from fastprune.data import Splits
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.graph.units import Units
from fastprune.methods._inherit import channel_order, plan_of
from fastprune.models import resolve
from fastprune.search import BeeColony, Space
from fastprune.search.bee_colony import neighbours
from fastprune.testing.surgery import fill
from fastprune.training import evaluate, recalibrate_batch_norm
from fastprune.training.evaluator import Request
from fastprune.training.scored import ScoredEvaluator
from fastprune.training.shared import inherited_subnets

RIVAL = "cut out, recalibrated and measured one by one"

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Setting:
    """ResNet-20, codes of its units at half the MACs, and a fitness that costs nothing."""

    model: torch.nn.Module
    graph: ChannelGraph
    units: Units
    space: Space
    splits: Splits

    @classmethod
    def made(cls) -> Setting:
        torch.manual_seed(0)
        model = fill(models.build("resnet20_cifar")).eval()
        graph = trace(model, EXAMPLE)
        table = resolve("resnet20_cifar").units
        assert table is not None
        units = table(graph)
        most = graph.cost().macs / 2

        def fits(codes: Codes) -> NDArray[np.bool_]:
            costs = [graph.cost(units.widths(graph, tuple(code))).macs for code in codes.tolist()]
            return np.array(costs) <= most

        space = Space((1,) * len(units), (10,) * len(units), fits)
        return cls(model, graph, units, space, digits())

    def fitness(self, code: tuple[int, ...]) -> float:
        """Smooth, with one best code: the layers before each change of size count for more."""
        weight = np.array([1, 1, 2, 1, 1, 2, 1, 1, 2])
        return -float((weight * (np.array(code) - [7, 5, 9, 5, 6, 9, 4, 3, 6]) ** 2).sum())

    def plans(self, codes: list[tuple[int, ...]]) -> list[PruningPlan]:
        order = channel_order("l1", self.model, self.graph, seed=0)
        widths = (self.units.widths(self.graph, code) for code in codes)
        return [plan_of(self.graph, each, order) for each in widths]

    def evolved(self, generation: int) -> list[tuple[int, ...]]:
        """A population of evolution; 0 is random."""
        search = evolution(self.space, generation + 1)
        for _ in range(generation):
            for candidate in search.ask():
                search.tell(candidate.number, self.fitness(candidate.code))
        return [candidate.code for candidate in search.ask()]

    def neighbours(self, around: int, moves: int = 2) -> list[tuple[int, ...]]:
        """Neighbours of the first ``around`` of a colony's ten sources after ten cycles, each with
        ``moves`` of its nine numbers moved.
        """
        colony = BeeColony(self.space, 0, food_number=10, max_cycle=10)
        while asked := colony.ask():
            for candidate in asked:
                colony.tell(candidate.number, self.fitness(candidate.code))
        sources = np.array([source.candidate.code for source in colony.sources])
        generator, at = np.random.default_rng(0), list(range(around)) * (10 * K // around)
        made = neighbours(self.space, sources, at, moves, generator).tolist()
        # No search evaluates a code twice.
        known = set(map(tuple, sources.tolist()))
        return [code for code in dict.fromkeys(map(tuple, made)) if code not in known][:K]


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting.made()


# Neighbours of one source have most in common; a phase of the colony asks for those of all.
POPULATIONS: dict[str, Callable[[Setting], list[tuple[int, ...]]]] = {
    "random": lambda setting: setting.evolved(0),
    "evolved": lambda setting: setting.evolved(6),
    "neighbours": lambda setting: setting.neighbours(10),
    "neighbours_of_one": lambda setting: setting.neighbours(1),
    "neighbours_by_one": lambda setting: setting.neighbours(1, moves=1),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "evolved" else pytest.mark.slow)
        for name in POPULATIONS
    ],
)
@pytest.mark.benchmark(timer=time.process_time)
def bench_population(
    name: str, setting: Setting, benchmark: Any, gate: Callable[..., None]
) -> None:
    plans = setting.plans(POPULATIONS[name](setting))
    assert len({plan.digest for plan in plans}) == K
    saved = []

    def together() -> list[float]:
        evaluator = ScoredEvaluator(
            partial(inherited_subnets, setting.model, setting.graph),
            EXAMPLE,
            setting.splits,
            batches=RECALIBRATED,
            device=CPU,
        )
        found = [outcome.fitness for _, outcome in evaluator.outcomes([*map(Request, plans)])]
        saved.append(evaluator.report["steps_saved"])
        return found

    def one_by_one() -> list[float]:
        validation, found = setting.splits.validation, []
        assert validation is not None
        for plan in plans:
            small = apply_plan(setting.model, setting.graph, plan)
            recalibrate_batch_norm(small, setting.splits.train, RECALIBRATED, CPU)
            found.append(evaluate(small, validation, device=CPU).top1)
        return found

    results: dict[str, list[float]] = {}

    def kept(side: Callable[[], list[float]]) -> Callable[[], None]:
        def run() -> None:
            results[side.__name__] = side()

        return run

    found = compare(benchmark, kept(together), kept(one_by_one), rounds=2)
    assert results["together"] == results["one_by_one"]
    gate(
        f"training/shared/{name}",
        found,
        rival=RIVAL,
        candidates=K,
        steps_saved=round(saved[0], 3),
    )
