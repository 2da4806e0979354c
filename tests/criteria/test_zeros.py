"""Zeros by channel against a plain float64 count, for every way a network may call its ReLUs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastprune import criteria
from fastprune.criteria import ZeroCounts, zero_counts
from fastprune.criteria.papm import joined
from fastprune.errors import FastpruneError, GraphError
from fastprune.graph import ChannelGraph, trace
from fastprune.testing import fill
from fastprune.testing.networks import Assembled

EXAMPLE = torch.zeros(1, 3, 8, 8)


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def residual(net: Assembled, x: Tensor) -> Tensor:
    """Stream "stem" behind two ReLUs, "inner" behind one; a ReLU in place and a function."""
    x = net.act(net.norm(net.stem(x)))
    x = torch.relu(x + net.second(F.relu(net.inner(x))))
    return net.head(x.mean((2, 3)))


def network() -> nn.Module:
    return fill(
        Assembled(
            residual,
            stem=conv(3, 8),
            norm=nn.BatchNorm2d(8),
            act=nn.ReLU(inplace=True),
            inner=conv(8, 6),
            second=conv(6, 8),
            head=nn.Linear(8, 5),
        )
    ).eval()


def images(count: int) -> Tensor:
    # Whole numbers, so that no sum is rounded: convolutions give the same in any batch.
    draw = torch.Generator().manual_seed(1)
    return torch.randint(-4, 5, (count, 3, 8, 8), generator=draw).float()


def exact(model: nn.Module) -> nn.Module:
    """With weights that are small whole numbers, so that no sum is rounded."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in [*model.parameters()]:
            tensor.copy_(torch.randint(-2, 3, tensor.shape, generator=draw))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1)
            module.eps = 0.0
    return model


def in_batches(x: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in x.split(size)]


def reference(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """APoZ of `network` in float64, by the definition."""
    net = copy.deepcopy(model).double()
    first = net.norm(net.stem(x.double())).clamp(min=0)
    inner = net.inner(first).clamp(min=0)
    second = (first + net.second(inner)).clamp(min=0)
    both = torch.stack([first, second])
    return {
        "stem": (both == 0).double().mean((0, 1, 3, 4)),
        "inner": (inner == 0).double().mean((0, 2, 3)),
    }


@pytest.mark.parametrize("size", [1, 7, 256])
def test_is_the_float64_count_whatever_the_batches(size: int) -> None:
    model, x = exact(network()), images(261)
    graph = trace(model, EXAMPLE)

    counts = zero_counts(model, graph, in_batches(x, size))

    found, expected = counts.apoz(graph), reference(model, x)
    assert counts.images == 261
    assert list(found) == ["stem", "inner"]
    for name, fraction in expected.items():
        # Both divide the same whole numbers, the mean by a product of the reciprocal's rounding.
        torch.testing.assert_close(found[name], fraction, rtol=1e-15, atol=0)
        assert 0 < fraction.min() < fraction.max() < 1
    scores = criteria.apoz(model, graph, batches=in_batches(x, size))
    assert torch.equal(scores["stem"], (1 - found["stem"]).float())


def test_shards_merge_to_the_whole() -> None:
    model, x = exact(network()), images(40)
    graph = trace(model, EXAMPLE)
    whole = zero_counts(model, graph, in_batches(x, 16))

    parts = [zero_counts(model, graph, in_batches(x[rank::3], 5)) for rank in range(3)]
    stored = [ZeroCounts.from_state_dict(part.state_dict()) for part in parts]
    merged = stored[0].merged(*stored[1:])

    assert merged.images == 40
    assert torch.equal(merged.zeros, whole.zeros)
    assert torch.equal(merged.elements, whole.elements)
    assert torch.equal(parts[0].merged().zeros, parts[0].zeros)


def single(act: Callable[[Assembled, Tensor], Tensor]) -> nn.Module:
    """conv — activation — linear, group "c"."""
    return exact(
        Assembled(
            lambda net, x: net.head(act(net, net.c(x)).mean((2, 3))),
            c=conv(3, 6),
            relu=nn.ReLU(),
            relu6=nn.ReLU6(inplace=True),
            silu=nn.SiLU(),
            head=nn.Linear(6, 5),
        )
    ).eval()


WAYS: dict[str, Callable[[Assembled, Tensor], Tensor]] = {
    "module": lambda net, x: net.relu(x),
    "relu6 module in place": lambda net, x: net.relu6(x),
    "method": lambda net, x: x.relu(),
    "method in place": lambda net, x: x.relu_(),
    "function by name": lambda net, x: F.relu(input=x, inplace=True),
    "relu6": lambda net, x: F.relu6(x),
    "hardtanh from 0": lambda net, x: F.hardtanh(x, 0.0, 3.0),
    "behind another activation": lambda net, x: torch.relu(x - F.hardtanh(x)),
    "channels last": lambda net, x: torch.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "tokens first": lambda net, x: (
        torch.relu(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).unflatten(2, x.shape[2:])
    ),
    "two axes": lambda net, x: torch.relu(x.unflatten(1, (x.shape[1] // 2, 2))).flatten(1, 2),
    "flat": lambda net, x: torch.relu(x.flatten(1)).view_as(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_call_it_counts(way: str) -> None:
    model, x = single(WAYS[way]), images(9)
    graph = trace(model, EXAMPLE)
    seen: list[Tensor] = []
    hook = model.c.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with torch.no_grad():
        model(x)
    hook.remove()
    y = seen[0]
    y = y - F.hardtanh(y) if way == "behind another activation" else y
    expected = (y <= 0).double().mean((0, 2, 3))

    (found,) = zero_counts(model, graph, in_batches(x, 4)).apoz(graph).values()

    if way == "two axes":  # pairs of channels are one unit
        assert len(found) in (3, 6)
        expected = expected if len(found) == 6 else expected.view(3, 2).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


def test_groups_without_a_relu_have_no_score_and_a_network_without_is_refused() -> None:
    def run(net: Assembled, x: Tensor) -> Tensor:
        return net.head(F.silu(net.b(torch.relu(net.a(x)))).mean((2, 3)))

    model = fill(Assembled(run, a=conv(3, 4), b=conv(4, 6), head=nn.Linear(6, 5)))
    graph = trace(model, EXAMPLE)

    assert list(criteria.apoz(model, graph, batches=in_batches(images(2), 2))) == ["a"]
    assert list(criteria.papm(model, graph, batches=in_batches(images(2), 2))) == ["a"]

    smooth = single(lambda net, x: F.hardtanh(net.silu(x)))
    with pytest.raises(FastpruneError, match="no channel group has a ReLU"):
        criteria.apoz(smooth, trace(smooth, EXAMPLE), batches=in_batches(images(2), 2))


def test_says_what_is_wrong() -> None:
    model = network()
    graph = trace(model, EXAMPLE)

    with pytest.raises(FastpruneError, match="no image"):
        zero_counts(model, graph, [])
    counts = zero_counts(model, graph, in_batches(images(2), 2))
    other = single(WAYS["module"])
    with pytest.raises(GraphError, match=r"gives \[2, 6, 8, 8\], expected \[8\] channels"):
        zero_counts(other, graph, in_batches(images(2), 2))
    branching = single(lambda net, x: x.relu() if len(x) == 1 else x.relu().relu())
    with pytest.raises(GraphError, match="2 calls of ReLU, expected 1"):
        zero_counts(branching, trace(branching, EXAMPLE), in_batches(images(2), 2))
    small = trace(other, EXAMPLE)
    with pytest.raises(GraphError, match="another network"):
        counts.apoz(small)
    with pytest.raises(GraphError, match="another network"):
        counts.merged(zero_counts(other, small, in_batches(images(2), 2)))
    with pytest.raises(ValueError, match="alpha"):
        joined(model, graph, counts.apoz(graph), 1.5)


def test_runs_in_evaluation_mode_and_leaves_modes_and_gradients() -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, EXAMPLE)

    counts = zero_counts(model, graph, in_batches(images(4), 2))

    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    quiet = zero_counts(model.eval(), graph, in_batches(images(4), 4))
    assert torch.equal(counts.zeros, quiet.zeros)


def papm_of(model: nn.Module, graph: ChannelGraph, alpha: float) -> criteria.Scores:
    return criteria.papm(model, graph, batches=in_batches(images(8), 3), alpha=alpha)


def spread(norm: Tensor) -> Tensor:
    return (norm - norm.min()) / (norm.max() - norm.min())


def test_papm_joins_norms_within_layers_and_zeros() -> None:
    model = network()
    graph = trace(model, EXAMPLE)
    apoz = zero_counts(model, graph, in_batches(images(8), 8)).apoz(graph)
    stem, second, inner = (
        spread(layer.weight.detach().double().flatten(1).norm(dim=1))
        for layer in (model.stem, model.second, model.inner)
    )

    scores = papm_of(model, graph, 0.3)

    expected = {"stem": (stem + second) / 2, "inner": inner}
    for name, norm in expected.items():
        torch.testing.assert_close(
            scores[name].double(), 0.3 * norm + 0.7 * (1 - apoz[name]), rtol=1e-5, atol=1e-6
        )
    assert torch.equal(papm_of(model, graph, 0)["inner"], (1 - apoz["inner"]).float())


def test_the_smallest_and_largest_of_a_layer_may_be_filters_that_always_stay() -> None:
    def run(net: Assembled, x: Tensor) -> Tensor:
        # The last two of the sum meet padding, and cannot go.
        padded = F.pad(net.narrow(x), (0, 0, 0, 0, 0, 2))
        return net.head(torch.relu(net.wide(x) + padded).mean((2, 3)))

    model = fill(Assembled(run, narrow=conv(3, 6), wide=conv(3, 8), head=nn.Linear(8, 5)))
    with torch.no_grad():
        model.wide.weight[7].mul_(9)
    graph = trace(model, EXAMPLE)
    wide, narrow = (
        spread(w.detach().double().flatten(1).norm(dim=1))
        for w in (model.wide.weight, model.narrow.weight)
    )

    (scores,) = papm_of(model, graph, 1.0).values()

    torch.testing.assert_close(scores.double(), (wide[:6] + narrow) / 2, rtol=1e-5, atol=1e-6)


def test_a_unit_of_several_filters_has_their_common_norm() -> None:
    def run(net: Assembled, x: Tensor) -> Tensor:
        return net.head(torch.relu(net.grouped(net.stem(x))).mean((2, 3)))

    model = fill(
        Assembled(run, stem=conv(3, 8), grouped=conv(8, 8, groups=4), head=nn.Linear(8, 5))
    )
    graph = trace(model, EXAMPLE)
    stem, grouped = (
        spread(w.detach().double().flatten(1).view(4, -1).norm(dim=1))
        for w in (model.stem.weight, model.grouped.weight)
    )

    scores = papm_of(model, graph, 1.0)

    torch.testing.assert_close(scores["stem"].double(), (stem + grouped) / 2, rtol=1e-5, atol=1e-6)
