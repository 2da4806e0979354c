"""Scores of filters against forward passes by hand, retained maps and exact Hessians."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd_networks import registered
from torch import Tensor, nn
from torch.nn import functional

import fastprune as fp
from fastprune.errors import FastpruneError
from fastprune.graph import ChannelGraph
from fastprune.methods._filter_scores import DATA_CRITERIA, FILTER_CRITERIA, filter_scores
from fastprune.methods._weight_masks import prunable_weights
from fastprune.testing import Assembled, fill

IMAGE = torch.zeros(1, 3, 8, 8)
NAMES = ("b.weight", "c.weight", "up.weight", "bare")


def network() -> nn.Module:
    """Grouped, transposed, called twice, called as a function, written over in place."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.drop(functional.relu_(net.norm(net.stem(x))))
        x = functional.leaky_relu_(net.b(x), 0.3)
        x = functional.relu_(net.c(x))
        x = functional.max_pool2d(net.c(x), 2)
        x = functional.conv2d(net.up(x).relu_(), weight=net.bare)
        return net.head(x.mean((2, 3)))

    model = Assembled(
        run,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        norm=nn.BatchNorm2d(6),
        drop=nn.Dropout(0.5),
        b=nn.Conv2d(6, 8, 3, groups=2),
        c=nn.Conv2d(8, 8, 3, padding=1),
        up=nn.ConvTranspose2d(8, 4, 2, groups=2),
        bare=nn.Parameter(torch.rand(5, 4, 1, 1)),
        head=nn.Linear(5, 3),
    )
    return fill(model).train()


def by_hand(net: Any, x: Tensor) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """The same in evaluation mode and out of place: logits and the map of every convolution."""
    maps: list[tuple[str, Tensor]] = []

    def keep(name: str, made: Tensor) -> Tensor:
        made.retain_grad()
        maps.append((name, made))
        return made

    norm = net.norm
    x = functional.batch_norm(
        net.stem(x), norm.running_mean, norm.running_var, norm.weight, norm.bias
    )
    x = functional.leaky_relu(keep("b.weight", net.b(x.relu())), 0.3)
    x = keep("c.weight", net.c(x)).relu()
    x = functional.max_pool2d(keep("c.weight", net.c(x)), 2)
    x = keep("up.weight", net.up(x)).relu()
    x = keep("bare", functional.conv2d(x, net.bare))
    return net.head(x.mean((2, 3))), maps


def data(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 3, (count,), generator=generator)


def batches_of(size: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = data()
    return list(zip(images.split(size), labels.split(size), strict=True))


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda f: f.detach().abs(),
    "l2": lambda f: f.detach() ** 2,
    "saliency": lambda f: (f.detach() * f.grad).abs() if f.grad is not None else f,
}


@pytest.mark.parametrize("size", [7, 3])
@pytest.mark.parametrize("criterion", VALUES)
def test_maps_are_the_convolutions_own(criterion: str, size: int) -> None:
    model = network()
    graph = fp.trace(model, IMAGE)
    scores = filter_scores(criterion, model, graph, NAMES, batches=batches_of(size))
    assert list(scores) == list(NAMES)
    double = copy.deepcopy(model).double().eval()
    images, labels = data()
    logits, maps = by_hand(double, images.double())
    assert torch.allclose(logits, double(images.double()))
    functional.cross_entropy(logits, labels, reduction="sum").backward()
    expected: dict[str, Any] = dict.fromkeys(NAMES, 0)
    for name, made in maps:
        expected[name] = expected[name] + VALUES[criterion](made).mean((0, 2, 3))
    for name, found in scores.items():
        assert found.dtype == torch.float32
        assert expected[name].min() > 0
        assert torch.allclose(found.double(), expected[name], rtol=1e-5), name


def test_criteria_without_data() -> None:
    model = network()
    graph = fp.trace(model, IMAGE)
    parameters = dict(model.named_parameters())
    masks = {n: torch.rand(parameters[n].shape) < 0.5 for n in NAMES}
    remain = filter_scores("remain", model, graph, NAMES, masks=masks)
    magnitude = filter_scores("magnitude", model, graph, NAMES)
    for name, given in ((n, parameters[n].detach().double()) for n in NAMES):
        mask = masks[name]
        for j in range(len(remain[name])):
            if name == "up.weight":  # [8 inputs, 2 outputs of each of 2 groups, 2, 2]
                part = slice(4 * (j // 2), 4 * (j // 2) + 4), j % 2
            else:
                part = slice(j, j + 1), slice(None)
            assert float(remain[name][j]) == int(mask[part].sum())
            assert math.isclose(
                float(magnitude[name][j]), float(given[part].abs().sum()), rel_tol=1e-6
            )
    first = filter_scores("random", model, graph, NAMES, seed=3)
    same = filter_scores("random", model, graph, NAMES, seed=3)
    other = filter_scores("random", model, graph, NAMES, seed=4)
    for name in NAMES:
        assert first[name].shape == remain[name].shape
        assert torch.equal(first[name], same[name])
        assert not torch.equal(first[name], other[name])


def tiny() -> tuple[nn.Module, ChannelGraph, list[str]]:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.head(net.b(net.a(x).tanh()).tanh().flatten(1))

    model = Assembled(run, a=nn.Conv2d(1, 2, 2), b=nn.Conv2d(2, 3, 2), head=nn.Linear(3, 2))
    graph = fp.trace(fill(model), torch.zeros(1, 1, 3, 3))
    return model, graph, ["a.weight", "b.weight"]


def exact_hessian(
    model: nn.Module, names: list[str], images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The weights of all convolutions as one vector, and the Hessian of the mean loss in them."""
    model = copy.deepcopy(model).double()
    start = [dict(model.named_parameters())[name].detach() for name in names]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([w.numel() for w in start])
        given = {n: p.view(w.shape) for n, p, w in zip(names, parts, start, strict=True)}
        made = torch.func.functional_call(model, given, (images.double(),))
        return functional.cross_entropy(made, labels)

    vector = torch.cat([w.flatten() for w in start])
    return vector, torch.autograd.functional.hessian(loss, vector)


@pytest.mark.parametrize("frozen", [False, True])
def test_hessian_is_hutchinsons_estimate(frozen: bool) -> None:
    model, graph, names = tiny()
    model.requires_grad_(not frozen)
    images, labels = torch.randn(6, 1, 3, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    vector, hessian = exact_hessian(model, names, images, labels)
    # One vector: exactly v ⊙ Hv.
    generator = torch.Generator().manual_seed(11)
    signs = [torch.randint(0, 2, w, generator=generator) for w in ((2, 1, 2, 2), (3, 2, 2, 2))]
    drawn = torch.cat([s.flatten() for s in signs]).double() * 2 - 1
    assert sorted(drawn.unique().tolist()) == [-1, 1]
    expected = vector.abs() * drawn * (hessian @ drawn)
    scores = filter_scores("hessian", model, graph, names, batches=[(images, labels)], seed=11)
    assert torch.allclose(scores["a.weight"].double(), expected[:8].view(2, 4).sum(1), rtol=1e-4)
    assert torch.allclose(scores["b.weight"].double(), expected[8:].view(3, 8).sum(1), rtol=1e-4)
    assert all(p.requires_grad is not frozen for p in model.parameters())
    if frozen:
        return
    # Many: the diagonal.
    exact = vector.abs() * hessian.diagonal()
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    scores = filter_scores("hessian", model, graph, names, batches=batches, samples=200)
    for found, part in (
        (scores["a.weight"], exact[:8].view(2, 4)),
        (scores["b.weight"], exact[8:].view(3, 8)),
    ):
        assert (found - part.sum(1)).abs().max() < 0.1 * float(exact.abs().sum())
    again = filter_scores("hessian", model, graph, names, batches=batches, samples=200)
    assert all(torch.equal(again[name], scores[name]) for name in names)
    with pytest.raises(ValueError, match="samples"):
        filter_scores("hessian", model, graph, names, batches=batches, samples=0)


def facts(model: nn.Module) -> list[Any]:
    """Everything a score might have changed."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [
        [(n, id(t), t._version, t.requires_grad, t.detach().clone()) for n, t in tensors.items()],
        [
            (n, id(p.grad), None if p.grad is None else p.grad.clone())
            for n, p in model.named_parameters()
        ],
        [
            (n, m.training, len(m._forward_hooks), len(m._backward_hooks))
            for n, m in model.named_modules()
        ],
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("criterion", FILTER_CRITERIA)
def test_the_network_is_left_as_it_was(criterion: str, raises: bool) -> None:
    model = network()
    model.norm.eval()
    model.c.weight.requires_grad_(False)
    graph = fp.trace(model, IMAGE)
    for name in ("b.weight", "head.bias"):
        parameter = dict(model.named_parameters())[name]
        parameter.grad = torch.ones_like(parameter)
    masks = {n: torch.ones(graph.tensors[n].shape, dtype=torch.bool) for n in NAMES}
    batches = batches_of(3)
    if raises:
        batches[1] = (batches[1][0], torch.tensor([0, 1, 99]))
        if criterion in ("l1", "l2"):
            batches[1] = (torch.zeros(3, 2, 8, 8), batches[1][1])
    before, drawn = facts(model), torch.get_rng_state()
    if raises and criterion in DATA_CRITERIA:
        with pytest.raises((RuntimeError, IndexError)):
            filter_scores(criterion, model, graph, NAMES, masks=masks, batches=batches)
    else:
        filter_scores(criterion, model, graph, NAMES, masks=masks, batches=batches)
    assert same(facts(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.is_grad_enabled()


def test_frozen_weights_have_the_same_saliency() -> None:
    model = network()
    graph = fp.trace(model, IMAGE)
    free = filter_scores("saliency", model, graph, NAMES, batches=batches_of(4))
    model.requires_grad_(False)
    frozen = filter_scores("saliency", model, graph, NAMES, batches=batches_of(4))
    assert all(torch.equal(free[name], frozen[name]) for name in NAMES)


@pytest.mark.parametrize("criterion", FILTER_CRITERIA)
def test_networks_of_other_kinds(criterion: str) -> None:
    model, example = registered("mobilenet_v2")
    model.float()
    graph = fp.trace(model, example.float())
    names = prunable_weights(graph)
    masks = {n: torch.ones(graph.tensors[n].shape, dtype=torch.bool) for n in names}
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([1, 5]))]
    scores = filter_scores(criterion, model, graph, names, masks=masks, batches=batches)
    for name, found in scores.items():
        assert found.shape == (graph.tensors[name].shape[0],)
        assert found.isfinite().all()
        assert criterion == "remain" or len(found.unique()) > 1, name


def test_what_cannot_be_scored_is_refused() -> None:
    model = network()
    graph = fp.trace(model, IMAGE)
    with pytest.raises(FastpruneError, match=r"unknown filter criterion 'salience'.*saliency"):
        filter_scores("salience", model, graph, NAMES)
    with pytest.raises(FastpruneError, match=r"'remain'.*expected masks"):
        filter_scores("remain", model, graph, NAMES)
    with pytest.raises(FastpruneError, match="not the weight of a convolution"):
        filter_scores("magnitude", model, graph, ["head.weight"])
    for criterion in DATA_CRITERIA:
        with pytest.raises(FastpruneError, match=rf"'{criterion}'.*expected batches"):
            filter_scores(criterion, model, graph, NAMES)
        with pytest.raises(FastpruneError, match="no batch"):
            filter_scores(criterion, model, graph, NAMES, batches=[])
    double = copy.deepcopy(model)
    double.run = lambda net, x: net.head(net.norm(net.stem(x))[:, :5].mean((2, 3)))
    with pytest.raises(FastpruneError, match=r"b\.weight was not seen to run"):
        filter_scores("l1", double, graph, NAMES, batches=batches_of(3))
