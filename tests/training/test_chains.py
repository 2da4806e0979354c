"""Batch norms as one step with their neighbours: what is joined, and what it gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune import models
from fastprune.graph import trace
from fastprune.testing.surgery import fill, random_plan
from fastprune.training._chains import Chain, can_fold, chained
from fastprune.training._union import Subnet, union_of
from fastprune.training.shared import SharedEvaluator, inherited_subnets

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(1, 3, 32, 32)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "padded shortcuts": lambda: models.build("resnet20_cifar", depth=8),
    "projections": lambda: models.build("resnet20_cifar", depth=8, shortcut="B"),
    "concatenation": lambda: models.build("densenet40_cifar", depth=10),
    "depthwise, ReLU6, sums": lambda: models.build("mobilenet_v2", num_classes=10),
    "convolutions with biases": lambda: models.build("vgg16_cifar"),
}

folds = pytest.mark.skipif(
    not can_fold(torch.bfloat16, CPU), reason="this processor has no bf16 for oneDNN"
)


class Joined(nn.Module):
    """A convolution and a norm in many neighbourhoods."""

    def __init__(self, last: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.side = nn.Conv2d(3, 8, 1)
        self.last = last
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.norm(self.conv(x)), self.side(x))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def chains_of(model: nn.Module, *, convolutions: bool = True) -> list[Chain]:
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    subnet = Subnet(model.eval(), {name: (name, t.detach()) for name, t in weights.items()})
    union = union_of([subnet], EXAMPLE)
    _, chains = chained(union, union.calls, convolutions=convolutions)
    return list(chains.values())


@pytest.mark.parametrize(
    ("last", "sums", "bounds"),
    [
        (lambda y, z: y, False, None),
        (lambda y, z: F.relu(y), False, (0.0, None)),
        (lambda y, z: torch.relu_(y), False, (0.0, None)),
        (lambda y, z: F.relu6(y), False, (0.0, 6.0)),
        (lambda y, z: F.hardtanh(y), False, (-1.0, 1.0)),
        (lambda y, z: F.hardtanh(y, -2.0, max_val=3.0), False, (-2.0, 3.0)),
        (lambda y, z: y + z, True, None),
        (lambda y, z: F.relu(z + y), True, (0.0, None)),
        # Not all that the step does, or not the norm's result alone.
        (lambda y, z: torch.add(y, z, alpha=2), False, None),
        (lambda y, z: y + 1, False, None),
        (lambda y, z: y + y, False, None),
        (lambda y, z: F.relu(y) + y, False, None),
        (lambda y, z: F.relu(y + z) + y, False, None),
        (lambda y, z: F.silu(y), False, None),
    ],
)
@torch.no_grad()
def test_what_follows_a_norm_is_joined_where_nobody_else_reads_it(
    last: Callable[[Tensor, Tensor], Tensor],
    sums: bool,
    bounds: tuple[float, float | None] | None,
) -> None:
    torch.manual_seed(0)
    model = fill(Joined(last)).eval()
    (chain,) = chains_of(model)
    assert (chain.other is not None, chain.bounds) == (sums, bounds)
    assert chain.convolution is not None
    (bare,) = chains_of(model, convolutions=False)
    assert bare.convolution is None

    graph = trace(model, EXAMPLE)
    x = torch.randn(3, 3, 32, 32)
    subnets = list(inherited_subnets(model, graph, [graph.full_plan()]))
    found = SharedEvaluator(subnets, EXAMPLE, device=CPU).logits(x)[0]
    assert torch.equal(found, model(x))


def test_of_two_norms_that_are_added_up_the_later_takes_the_sum() -> None:
    chains = chains_of(models.build("resnet20_cifar", depth=8, shortcut="B"))
    # A stem and three blocks; the second and third have projections.
    assert len(chains) == 1 + 3 * 2 + 2
    assert sum(chain.other is not None for chain in chains) == 3
    assert sum(chain.bounds is None for chain in chains) == 2


@folds
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_norms_in_weights_are_as_close_as_bf16_is(name: str) -> None:
    torch.manual_seed(0)
    model = fill(NETWORKS[name]()).eval()
    graph = trace(model, EXAMPLE)
    plan = random_plan(graph, 7)
    plans = [graph.full_plan(), plan, plan]
    x = torch.randn(4, 3, 32, 32)
    subnets = list(inherited_subnets(model, graph, plans))
    evaluator = SharedEvaluator(subnets, EXAMPLE, device=CPU, precision="bf16")
    found = evaluator.logits(x)
    with torch.autocast("cpu", torch.bfloat16):
        plain = [subnet.module(x) for subnet in subnets]
    exact = [subnet.module.double()(x.double()) for subnet in subnets]

    def error(logits: list[Tensor]) -> float:
        return sum(float((a - b).square().sum()) for a, b in zip(logits, exact, strict=True))

    assert error([found[n] for n in range(3)]) <= 1.5**2 * error(plain)
    assert torch.equal(found[1], found[2])


@folds
@torch.no_grad()
def test_in_bf16_too_a_candidate_is_what_it_is_alone() -> None:
    torch.manual_seed(0)
    model = fill(models.build("resnet20_cifar", depth=8)).eval()
    graph = trace(model, EXAMPLE)
    plans = [graph.full_plan(), *(random_plan(graph, seed) for seed in range(3))]
    x = torch.randn(4, 3, 32, 32)

    def logits(some: list[int]) -> list[Tensor]:
        subnets = inherited_subnets(model, graph, [plans[n] for n in some])
        found = SharedEvaluator(subnets, EXAMPLE, device=CPU, precision="bf16").logits(x)
        return [found[n] for n in range(len(some))]

    for number, together in enumerate(logits([0, 1, 2, 3])):
        assert torch.equal(together, logits([number])[0])


@torch.no_grad()
def test_a_weight_that_is_no_number_is_not_clipped_away() -> None:
    model = fill(models.build("resnet20_cifar", depth=8)).eval()
    graph = trace(model, EXAMPLE)
    model.get_parameter("layer1.0.conv1.weight").data[0, 0, 0, 0] = torch.nan
    for precision in ("fp32", "bf16"):
        subnets = inherited_subnets(model, graph, [graph.full_plan()])
        evaluator = SharedEvaluator(subnets, EXAMPLE, device=CPU, precision=precision)
        assert not evaluator.logits(torch.randn(2, 3, 32, 32))[0].isfinite().all()
