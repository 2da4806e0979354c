"""Measuring MetaPruning's candidates: together, one by one, and as the published code does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _interleave import compare
from _population import CPU, EXAMPLE, MEASURED, RECALIBRATED, K, digits, evolution
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torchvision import transforms

from fastprune import apply_plan, models, trace
from fastprune.data import Splits
from fastprune.graph import ChannelGraph, GeneTable, PruningPlan
from fastprune.methods._pruningnet import GeneratedSubnets, PruningNet
from fastprune.models import resolve
from fastprune.search import Space
from fastprune.training import evaluate, recalibrate_batch_norm
from fastprune.training.evaluator import Request
from fastprune.training.scored import ScoredEvaluator

PUBLISHED = "weights in every batch, images decoded a candidate"
RIVALS = ("one_by_one", "published-fp32", "published")


@dataclass(frozen=True)
class Setting:
    """ResNet-20, a pruningnet that was not trained, digits."""

    model: nn.Module
    graph: ChannelGraph
    table: GeneTable
    net: PruningNet
    splits: Splits

    @classmethod
    def made(cls) -> Setting:
        torch.manual_seed(0)
        model = models.build("resnet20_cifar").eval()
        graph = trace(model, EXAMPLE)
        genes = resolve("resnet20_cifar").genes
        assert genes is not None
        table = genes(graph)
        return cls(model, graph, table, PruningNet(model, table, EXAMPLE), digits())

    @cached_property
    def evolved(self) -> list[PruningPlan]:
        """The seventh population of an evolution under half the MACs, by a smooth fitness."""
        most = self.graph.cost().macs / 2

        def fits(genes: NDArray[np.int64]) -> NDArray[np.bool_]:
            costs = self.graph.costs(self.table.width_matrix(self.graph, genes))
            return np.asarray(costs.macs <= most)

        search = evolution(Space(self.table.low, self.table.high, fits), 7)
        best = np.array([12, 20, 25, 9, 17, 28, 14, 6, 22])
        for _ in range(6):
            for candidate in search.ask():
                distance = np.square(np.array(candidate.code) - best).sum()
                search.tell(candidate.number, -float(distance))
        return [self.table.plan(candidate.code) for candidate in search.ask()]

    @property
    def measured(self) -> Any:
        assert self.splits.validation is not None
        return self.splits.validation

    def together(self, plans: list[PruningPlan], **how: Any) -> list[float]:
        """Ours."""
        evaluator = ScoredEvaluator(
            GeneratedSubnets(self.net),
            EXAMPLE,
            self.splits,
            batches=RECALIBRATED,
            device=CPU,
            **how,
        )
        requests = [Request(plan) for plan in plans]
        return [outcome.fitness for _, outcome in evaluator.outcomes(requests)]

    def one_by_one(self, plans: list[PruningPlan]) -> list[float]:
        """Weights generated once a candidate, which is then cut out, recalibrated and measured."""
        found = []
        for plan in plans:
            gene = self.table.gene(plan.widths())
            small = apply_plan(self.model, self.graph, plan)
            weights = dict(small.named_parameters())
            with torch.no_grad():
                for layer, shape in zip(self.net.layers, self.net.shapes([gene])[0], strict=True):
                    made = self.net.generate(layer, [gene], [shape])[0]
                    weights[f"{layer.name}.weight"].copy_(made)
            recalibrate_batch_norm(small, self.splits.train, RECALIBRATED, CPU)
            found.append(evaluate(small, self.measured, device=CPU).top1)
        return found

    @torch.no_grad()
    def published(self, plans: list[PruningPlan]) -> list[float]:
        """For every candidate images decoded anew, and for every batch all weights generated."""
        decode = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.3,), (0.3,))])
        found = []
        for plan in plans:
            gene = self.table.gene(plan.widths())
            small = apply_plan(self.model, self.graph, plan)
            for module in small.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
                    module.momentum = None
            right = seen = 0
            for part, pipeline, count in (
                (True, self.splits.train, RECALIBRATED),
                (False, self.measured, self.measured.batches),
            ):
                small.train(part)
                for _, (x, y) in zip(range(count), pipeline.epoch(0), strict=False):
                    torch.stack([decode(Image.fromarray(each)) for each in self.pixels[: len(x)]])
                    logits = functional_call(small, self.regenerated(gene), (x,))
                    if not part:
                        right += int((logits.argmax(1) == y).sum())
                        seen += len(y)
            found.append(100 * right / seen)
        return found

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        return np.random.default_rng(0).integers(
            0, 256, (self.splits.train.batch_size, 32, 32, 3), dtype=np.uint8
        )

    def regenerated(self, gene: tuple[int, ...]) -> dict[str, Tensor]:
        weights = dict(zip(self.net.other_names, self.net.others, strict=True))
        for layer, (out, into) in zip(self.net.layers, self.net.shapes([gene])[0], strict=True):
            scales = torch.tensor(self.net.encodings(layer, [gene]), dtype=torch.float32)
            first, second = self.net.generators[layer.number].children()
            whole = second(F.relu(first(scales))).view(layer.shape)
            weights[f"{layer.name}.weight"] = whole[:out, :into]
        return weights


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting.made()


@pytest.mark.parametrize(
    ("name", "how", "rival"),
    [
        ("one_by_one", {}, "weights once a candidate, one by one"),
        pytest.param("published-fp32", {}, PUBLISHED, marks=pytest.mark.slow),
        # As the method measures unless told otherwise.
        ("published", {"precision": "auto", "channels_last": True}, PUBLISHED),
    ],
    ids=lambda value: value if value in RIVALS else "",
)
@pytest.mark.benchmark(timer=time.process_time)
def bench_evolved(
    name: str,
    how: dict[str, Any],
    rival: str,
    setting: Setting,
    benchmark: Any,
    gate: Callable[..., None],
) -> None:
    plans = setting.evolved
    assert len({plan.digest for plan in plans}) == K
    theirs = setting.one_by_one if name == "one_by_one" else setting.published
    # The usual batch norm of the published way sums in another order.
    close = 0 if name == "one_by_one" else 100 * 3 / MEASURED
    assert setting.together(plans[:4]) == pytest.approx(theirs(plans[:4]), rel=0, abs=close)
    found = compare(
        benchmark,
        partial(setting.together, plans, **how),
        partial(theirs, plans),
        rounds=2,
        rival_rounds=2 if name == "one_by_one" else 1,
    )
    gate(f"methods/metapruning/{name}", found, rival=rival, candidates=K, images=MEASURED)
