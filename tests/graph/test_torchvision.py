"""Every classification network of torchvision: traced in seconds, exact after a random plan of 30
%.

``pytest -rP`` prints which channels of which network stay, and why.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import nn

from fastprune.errors import GraphError
from fastprune.graph import ChannelGraph, apply_plan, trace
from fastprune.testing import check_pruning, random_plan

NETWORKS = torchvision.models.list_models(module=torchvision.models)

# Above this many parameters the masked copy and two forward passes take too long on two cores; the
# pruned network is still made, and its shapes and cost compared with what the plan predicts.
COMPARED = 110_000_000

SECONDS = 3.0


INITIALISERS = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_")


@pytest.fixture(autouse=True)
def _uninitialised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's own random initialisation of these networks takes minutes in all."""
    for name in (*INITIALISERS, "xavier_normal_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


def built(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision.models.get_model(name, weights=None).eval()


def fill_quickly(model: nn.Module) -> None:
    """Weights of which no two channels are alike: one stretch of noise, repeated."""
    noise = torch.rand(1_000_003, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_floating_point():
                continue
            size = tensor.numel()
            values = noise.repeat(-(-size // len(noise)))[:size].view(tensor.shape)
            if tensor.ndim > 1:
                tensor.copy_(values * (3 / tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(1 + 0.5 * values)


def traced(model: nn.Module) -> tuple[ChannelGraph, torch.Tensor]:
    """At 64 pixels, or at the first larger size that the network takes."""
    for size in (64, 128, 224, 299):
        example = torch.zeros(1, 3, size, size)
        try:
            return trace(model, example), example
        except GraphError:
            continue
    raise AssertionError("the network takes none of the sizes")


def report(name: str, graph: ChannelGraph) -> str:
    reasons: Counter[str] = Counter()
    for row in graph.unprunable:
        reasons[re.sub(r" \(op \d+\)|\[[\d, ]+\]", "", row.reason)] += row.channels
    stays = "; ".join(f"{count} channels: {reason}" for reason, count in reasons.most_common())
    return f"{name}: {len(graph.groups)} groups, {graph.total} units; {stays}"


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    model = built(name)
    start = time.perf_counter()
    graph, example = traced(model)
    seconds = time.perf_counter() - start

    print(report(name, graph))
    assert seconds < SECONDS
    # maxvit's attention alone; its channels stay, and say so.
    assert set(graph.program.ruleless) <= {"einsum"}
    assert graph.groups, "every one of them has convolutions or linear layers to prune"
    plan = random_plan(graph, 1, low=0.3, high=0.3)
    if graph.cost().params > COMPARED:
        small = apply_plan(model, graph, plan)
        assert trace(small, example).cost() == graph.cost(plan)
        return
    fill_quickly(model)
    check_pruning(model, graph, plan, [example], batches=(2,), tolerance=2e-3)
