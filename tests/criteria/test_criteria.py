"""Criteria: values against the plain formulas, and what every registered one must hold to."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastprune import criteria
from fastprune.criteria._scores import norms
from fastprune.errors import FastpruneError, GraphError
from fastprune.graph import Slot, apply_plan, solve, trace
from fastprune.testing import fill

EXAMPLE = torch.zeros(1, 3, 8, 8)


def plain() -> nn.Sequential:
    """conv 8 — batch norm — conv 6 — linear: groups "0" and "3"."""
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ]
    return fill(nn.Sequential(*layers)).eval()  # type: ignore[return-value]


class Residual(nn.Module):
    """One group over a depthwise, a grouped and two full convolutions, with a bare scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 1, groups=2)
        self.gamma = nn.Parameter(torch.ones(16))
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.gamma.view(1, -1, 1, 1) * self.grouped(self.depthwise(x))
        return self.head(x.mean((2, 3)))


def batches(model: nn.Module, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    dtype = next(model.parameters()).dtype
    return [
        (
            torch.randn(4, 3, 8, 8, generator=draw).to(dtype),
            torch.randint(5, (4,), generator=draw),
        )
        for _ in range(count)
    ]


def scored(name: str, model: nn.Module) -> criteria.Scores:
    graph = trace(model, EXAMPLE.to(next(model.parameters()).dtype))
    draw = torch.Generator().manual_seed(0)
    return criteria.score(name, model, graph, batches=batches(model), generator=draw)


def normal(values: Tensor) -> Tensor:
    return values / values.mean()


def sides(model: nn.Sequential) -> tuple[Tensor, ...]:
    """Weights ``[channel, rest]``: of group "0" made and read, of group "3" made and read."""
    first, second, last = model[0].weight, model[3].weight, model[6].weight
    return first.flatten(1), second.transpose(0, 1).flatten(1), second.flatten(1), last.t()


def test_l1_is_the_mean_of_absolute_sums_over_both_sides() -> None:
    model = plain()
    a, b, c, d = (side.abs().sum(1) for side in sides(model))

    scores = scored("l1", model)

    torch.testing.assert_close(scores["0"], normal((a + b) / 2).detach())
    torch.testing.assert_close(scores["3"], normal((c + d) / 2).detach())


def test_l2_is_the_mean_of_norms_over_both_sides() -> None:
    model = plain()
    a, b, c, d = (side.square().sum(1).sqrt() for side in sides(model))

    scores = scored("l2", model)

    torch.testing.assert_close(scores["0"], normal((a + b) / 2).detach())
    torch.testing.assert_close(scores["3"], normal((c + d) / 2).detach())


def test_geometric_median_sums_distances_between_the_filters_that_make_the_channels() -> None:
    model = plain()
    filters = model[0].weight.detach().flatten(1)
    distances = torch.stack([(filters - one).norm(dim=1).sum() for one in filters])

    torch.testing.assert_close(scored("geometric_median", model)["0"], normal(distances))


def test_batch_norm_scale_is_the_absolute_scale_and_leaves_groups_without_one_out() -> None:
    model = plain()
    with torch.no_grad():
        model[1].weight.mul_(-1)

    scores = scored("batch_norm_scale", model)

    assert list(scores) == ["0"]
    torch.testing.assert_close(scores["0"], model[1].weight.detach().abs())


def test_lamp_divides_by_what_is_at_least_as_large() -> None:
    model = plain()
    a, b, *_ = (side.square().sum(1) for side in sides(model))
    energy = ((a + b) / 2).detach()
    expected = torch.stack([e / energy[energy >= e].sum() for e in energy])

    scores = scored("lamp", model)

    torch.testing.assert_close(scores["0"], expected)
    assert all(float(values.max()) == 1 for values in scores.values())


def test_taylor_is_the_absolute_sum_of_weight_times_gradient() -> None:
    model = plain()
    weights = [model[0].weight, model[3].weight]
    loss = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in batches(model))
    first, second = (
        w.detach() * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)
    )
    made, read = first.sum((1, 2, 3)).abs(), second.sum((0, 2, 3)).abs()

    torch.testing.assert_close(scored("taylor", model)["0"], normal((made + read) / 2))


def test_taylor_says_what_it_lacks() -> None:
    model = plain()
    graph = trace(model, EXAMPLE)

    with pytest.raises(FastpruneError, match="looks at data"):
        criteria.score("taylor", model, graph)
    with pytest.raises(FastpruneError, match="no batch"):
        criteria.taylor(model, graph, batches=[])
    with pytest.raises(FastpruneError, match="every weight is frozen"):
        criteria.taylor(model.requires_grad_(False), graph, batches=batches(model))


def test_random_repeats_with_its_generator() -> None:
    model = plain()
    graph = trace(model, EXAMPLE)

    one, two = (
        criteria.random(model, graph, generator=torch.Generator().manual_seed(5)) for _ in "ab"
    )

    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(FastpruneError, match="'l1'"):
        criteria.score("l11", plain(), trace(plain(), EXAMPLE))


NETWORKS = {"plain": plain, "residual": lambda: fill(Residual()).eval()}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


@pytest.mark.parametrize("name", criteria.registry.names())
class TestEveryCriterion:
    def test_gives_a_finite_score_to_each_channel(self, name: str, network: nn.Module) -> None:
        widths = trace(network, EXAMPLE).widths()
        scores = scored(name, network)

        assert scores.keys() <= widths.keys()
        for group, values in scores.items():
            assert values.shape == (widths[group],)
            assert values.dtype == torch.float32
            assert values.isfinite().all()
            assert not values.requires_grad
            assert (values >= 0).all()

    def test_leaves_the_network_alone(self, name: str, network: nn.Module) -> None:
        network.train()
        before = copy.deepcopy(network.state_dict())
        flags = [p.requires_grad for p in network.parameters()]
        scored(name, network)

        assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
        assert [p.requires_grad for p in network.parameters()] == flags
        assert all(p.grad is None for p in network.parameters())
        assert all(m.training for m in network.modules())

    def test_repeats(self, name: str, network: nn.Module) -> None:
        one, two = scored(name, network), scored(name, network)

        assert all(torch.equal(one[group], two[group]) for group in one)

    def test_takes_half_precision_and_channels_last(self, name: str, network: nn.Module) -> None:
        half = copy.deepcopy(network).to(torch.bfloat16).to(memory_format=torch.channels_last)

        for group, values in scored(name, half).items():
            assert values.dtype == torch.float32, group
            assert values.isfinite().all(), group

    def test_takes_weights_that_are_all_zero(self, name: str, network: nn.Module) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()

        assert all(values.isfinite().all() for values in scored(name, network).values())

    def test_ranks_for_a_plan(self, name: str, network: nn.Module) -> None:
        graph = trace(network, EXAMPLE)
        scores = scored(name, network)

        plan = solve(graph, scores, {"macs": 0.8})

        assert graph.cost(plan).macs <= 0.8 * graph.cost().macs
        assert apply_plan(network, graph, plan)(EXAMPLE).shape == (1, 5)


@pytest.mark.parametrize("name", [n for n in criteria.registry.names() if n != "random"])
def test_another_network_is_refused(name: str) -> None:
    graph = trace(plain(), EXAMPLE)
    wider = nn.Sequential(
        *(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 7, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5)),
    )

    with pytest.raises(GraphError, match="another network"):
        criteria.score(name, wider, graph, batches=batches(wider))


def test_a_dropped_channel_is_the_one_with_the_lowest_score() -> None:
    model = plain()
    with torch.no_grad():
        model[0].weight[5].mul_(0.01)
        model[3].weight[:, 5].mul_(0.01)
    graph = trace(model, EXAMPLE)

    for name in ("l1", "l2", "lamp", "taylor"):
        assert int(scored(name, model)["0"].argmin()) == 5, name
    plan = solve(graph, criteria.l1(model, graph), ratios={"0": 1 / 8})

    assert plan.keep["0"] == (0, 1, 2, 3, 4, 6, 7)


def test_a_grouped_convolution_is_scored_by_units() -> None:
    model = fill(Residual()).eval()
    graph = trace(model, EXAMPLE)

    assert graph.widths() == {"stem": 8}
    stem = model.stem.weight.detach().abs().sum((1, 2, 3)).view(2, 8).sum(0)
    depthwise = model.depthwise.weight.detach().abs().sum((1, 2, 3)).view(2, 8).sum(0)
    made = model.grouped.weight.detach().abs().sum((1, 2, 3)).view(2, 8).sum(0)
    read = model.grouped.weight.detach().abs().sum((0, 2, 3))
    head = model.head.weight.detach().abs().sum(0).view(2, 8).sum(0)
    expected = normal((stem + depthwise + made + read + head) / 5)

    torch.testing.assert_close(criteria.l1(model, graph)["stem"], expected)


def test_norms_of_any_dimension_and_dtype() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Parameter(torch.randn(3, 4, 5))
            self.whole = nn.Parameter(torch.arange(6).view(2, 3), requires_grad=False)

    model, graph = Odd(), trace(plain(), EXAMPLE)
    names = ("deep", "whole", "missing")
    # A property that is computed once: what is put in its place stays.
    graph.__dict__["slots"] = tuple(Slot((name,), 0, "out", np.arange(1)) for name in names)
    values = norms(model, graph, lambda s: (s.out_abs, s.in_abs))
    for name, dims in (("deep", 3), ("whole", 2)):
        parameter = getattr(model, name)
        for dim in range(dims):
            expected = parameter.detach().float().abs().movedim(dim, 0).flatten(1).sum(1)
            torch.testing.assert_close(values(parameter, dim, name), expected)
