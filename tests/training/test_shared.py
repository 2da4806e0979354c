"""Shared evaluation: every candidate as if it had been alone, and each common step once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune import data, models
from fastprune.errors import GraphError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, trace
from fastprune.graph.units import units_by_group
from fastprune.search import BeeColony, Evolution, SearchAlgorithm, Space
from fastprune.testing.surgery import fill, random_plan
from fastprune.training import evaluate, recalibrate_batch_norm
from fastprune.training._schedule import schedules_of
from fastprune.training._union import union_of
from fastprune.training.shared import SharedEvaluator, inherited_subnets

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(1, 3, 32, 32)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: models.build("resnet20_cifar", depth=8),
    "concatenation": lambda: models.build("densenet40_cifar", depth=10),
    "depthwise": lambda: models.build("mobilenet_v2", num_classes=10),
}


@pytest.fixture(scope="module", params=NETWORKS)
def traced(request: pytest.FixtureRequest) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    model = fill(NETWORKS[request.param]()).eval()
    return model, trace(model, EXAMPLE)


def neighbours(graph: ChannelGraph, count: int) -> list[PruningPlan]:
    """Plans that differ from one random plan in one group each; the first is that plan."""
    base = random_plan(graph, 0)
    plans = [base]
    for group in graph.groups[: count - 1]:
        kept = tuple(range(max(1, group.channels // 3)))
        plans.append(PruningPlan({**base.keep, group.name: kept}, base.channels))
    return plans


def shared(
    model: nn.Module, graph: ChannelGraph, plans: list[PruningPlan], **options: Any
) -> SharedEvaluator:
    subnets = inherited_subnets(model, graph, plans)
    return SharedEvaluator(subnets, EXAMPLE, device=CPU, **options)


def alone(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    return apply_plan(model, graph, plan, allow_unchanged=True).eval()


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    options = data.DataOptions(
        name="digits", batch_size=32, eval_batch_size=48, train_limit=80, test_limit=100
    )
    return data.load(options, 0)


@torch.no_grad()
def test_logits_are_those_of_each_candidate_alone(
    traced: tuple[nn.Module, ChannelGraph],
) -> None:
    model, graph = traced
    plans = [*neighbours(graph, 5), random_plan(graph, 7), graph.full_plan()]
    evaluator = shared(model, graph, plans)
    for images in (1, 5):
        x = torch.randn(images, 3, 32, 32)
        found = evaluator.logits(x)
        assert sorted(found) == list(range(len(plans)))
        for number, plan in enumerate(plans):
            assert torch.equal(found[number], alone(model, graph, plan)(x))


@torch.no_grad()
def test_recalibrated_candidates_are_those_recalibrated_alone(
    traced: tuple[nn.Module, ChannelGraph], splits: data.Splits
) -> None:
    model, graph = traced
    plans = [*neighbours(graph, 3), random_plan(graph, 7)]
    evaluator = shared(model, graph, plans)
    evaluator.recalibrate(splits.train, 3)
    outcomes = evaluator.evaluate(splits.test)
    x = torch.randn(4, 3, 32, 32)
    found = evaluator.logits(x)
    for number, plan in enumerate(plans):
        small = alone(model, graph, plan)
        recalibrate_batch_norm(small, splits.train, 3, CPU)
        assert torch.equal(found[number], small.eval()(x))
        metrics = evaluate(small, splits.test, device=CPU)
        assert outcomes[number].top1 == metrics.top1
        assert outcomes[number].images == metrics.images


def population(kind: str, graph: ChannelGraph, count: int) -> list[PruningPlan]:
    """Plans of ``count`` codes as a search asks for them, one tenth to all of every group."""
    units = units_by_group(graph)
    space = Space((1,) * len(units), (10,) * len(units))
    target = np.arange(len(units)) % 10 + 1

    def told(algorithm: SearchAlgorithm) -> list[tuple[int, ...]]:
        asked = algorithm.ask()
        for candidate in asked:
            distance = np.square(np.array(candidate.code) - target).sum()
            algorithm.tell(candidate.number, -float(distance))
        return [candidate.code for candidate in asked]

    if kind == "neighbours":
        colony = BeeColony(space, 0, food_number=max(count, 2), max_cycle=1)
        told(colony)
        codes = told(colony)[:count]
    else:
        parents = 2 if count > 1 else 1
        evolution = Evolution(
            space,
            0,
            population=count,
            select_num=parents,
            mutation_num=count // 2,
            crossover_num=count // 2,
            iterations=4,
        )
        codes = told(evolution)
        for _ in range(0 if kind == "random" else 3):
            codes = told(evolution)
    widths = [units.widths(graph, code) for code in codes]
    full = {group.name: group.channels for group in graph.groups}
    return [
        PruningPlan({name: tuple(range(kept)) for name, kept in each.items()}, full)
        for each in widths
    ]


@pytest.mark.parametrize("count", [1, 8, 64])
@pytest.mark.parametrize("kind", ["random", "evolved", "neighbours"])
@torch.no_grad()
def test_populations_of_searches_are_measured_as_each_candidate_alone(
    kind: str, count: int, traced: tuple[nn.Module, ChannelGraph], splits: data.Splits
) -> None:
    model, graph = traced
    plans = population(kind, graph, count)
    evaluator = shared(model, graph, plans)
    evaluator.recalibrate(splits.train, 1)
    x = torch.randn(3, 3, 32, 32)
    found = evaluator.logits(x)

    assert len(found) == len(plans) == count
    for number, plan in enumerate(plans):
        small = alone(model, graph, plan)
        recalibrate_batch_norm(small, splits.train, 1, CPU)
        assert torch.equal(found[number], small.eval()(x))


@torch.no_grad()
def test_little_memory_means_more_groups_and_the_same_logits(
    traced: tuple[nn.Module, ChannelGraph],
) -> None:
    model, graph = traced
    plans = neighbours(graph, 6)
    x = torch.randn(2, 3, 32, 32)
    roomy, tight = (shared(model, graph, plans, memory_limit=n) for n in (1e9, 1.0))
    subnets = list(inherited_subnets(model, graph, plans))
    union, everyone = union_of(subnets, EXAMPLE), range(len(plans))

    assert len(schedules_of(union, everyone, 10**9)) == 1
    assert len(schedules_of(union, everyone, 1)) == len(plans)
    middle = schedules_of(union, everyone, 10**9)[0].peak - 1
    halves = schedules_of(union, everyone, middle)
    assert len(halves) > 1
    assert all(part.peak <= middle or len(part.candidates) == 1 for part in halves)
    for number, logits in roomy.logits(x).items():
        assert torch.equal(logits, tight.logits(x)[number])


def test_a_step_in_common_is_run_once() -> None:
    model = fill(models.build("resnet20_cifar", depth=8)).eval()
    graph = trace(model, EXAMPLE)
    last = graph.groups[-1].name
    plans = [graph.full_plan(), PruningPlan({last: (0, 1, 2)})]
    evaluator = shared(model, graph, plans)
    twice = shared(model, graph, [graph.full_plan(), graph.full_plan()])

    assert twice.saved == 0.5
    # All but the last block and what follows it.
    assert 0.3 < evaluator.saved < 0.5


def test_a_step_beside_the_one_that_differs_is_run_once() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=4)
            self.left = nn.Conv2d(8, 8, 3)
            self.right = nn.Conv2d(8, 8, 3)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            both = torch.cat((self.left(x), self.right(x)), 1)
            logits: Tensor = self.head(both.mean((2, 3)))
            return logits

    model = Branches().eval()
    graph = trace(model, EXAMPLE)
    plans = [graph.full_plan(), PruningPlan({"left": (0, 1)})]
    union = union_of(list(inherited_subnets(model, graph, plans)), EXAMPLE)

    # stem, relu and the right branch are common; left, cat, mean and head are not.
    first, second = (set(path) for path in union.paths)
    assert len(first & second) == 3
    assert len(first - second) == 4


@torch.no_grad()
def test_writing_in_place_spoils_nothing_for_others() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, stride=4)
            self.b = nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x), inplace=True)
            y = self.b(x)
            y += x
            y.mul_(2)
            logits: Tensor = self.head(torch.relu_(y).mean((2, 3)))
            return logits

    model = InPlace().eval()
    graph = trace(model, EXAMPLE)
    plans = [graph.full_plan(), random_plan(graph, 1)]
    x = torch.randn(3, 3, 32, 32)
    before = x.clone()
    found = shared(model, graph, plans).logits(x)

    assert torch.equal(x, before)
    for number, plan in enumerate(plans):
        assert torch.equal(found[number], alone(model, graph, plan)(x.clone()))


def test_what_cannot_be_shared_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)) * torch.tensor([2.0])

    class Written(Constant):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).mean((2, 3))
            y[:, 0] = 0
            return y

    class Two(Constant):
        def forward(self, x: Tensor) -> Any:
            y = self.conv(x).mean((2, 3))
            return y, y + 1

    for kind, said in ((Constant, "constants"), (Written, "writes into"), (Two, "one tensor")):
        model = kind().eval()
        graph = trace(model, EXAMPLE)
        with pytest.raises(GraphError, match=said):
            shared(model, graph, [graph.full_plan()])


class Normalised(nn.Module):
    """Two convolutions and what normalises each."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.first, self.second = first, second
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.one(x)))
        x = F.relu(self.second(self.two(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@torch.no_grad()
def test_batch_norms_without_statistics_keep_taking_those_of_the_batch(
    splits: data.Splits,
) -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(8, track_running_stats=False)
    model = fill(Normalised(plain, nn.BatchNorm2d(8))).eval()
    graph = trace(model, EXAMPLE)
    plans = neighbours(graph, 2)
    evaluator = shared(model, graph, plans)
    evaluator.recalibrate(splits.train, 2)
    x = torch.randn(5, 3, 32, 32)
    found = evaluator.logits(x)
    for number, plan in enumerate(plans):
        small = alone(model, graph, plan)
        recalibrate_batch_norm(small, splits.train, 2, CPU)
        assert torch.equal(found[number], small(x))


def test_a_batch_norm_used_twice_is_refused(splits: data.Splits) -> None:
    norm = nn.BatchNorm2d(8)
    model = Normalised(norm, norm).eval()
    graph = trace(model, EXAMPLE)
    evaluator = shared(model, graph, [graph.full_plan()])
    with pytest.raises(GraphError, match="a batch norm more than once"):
        evaluator.recalibrate(splits.train, 1)
