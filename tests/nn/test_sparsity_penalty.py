"""The sparsity penalty in training loops of every kind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastprune.errors import FastpruneError
from fastprune.nn import SparsityPenalty

STRENGTH = 0.1


def _network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.copy_(torch.randn_like(norm.weight))
        model[1].weight[0] = 0
    return model


def _images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def _by_hand(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the loss with the penalty as a part of it; at γ = 0 that of abs() is 0 too."""
    model = copy.deepcopy(model)
    penalty = sum(m.weight.abs().sum() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    (model(images).square().mean() + STRENGTH * penalty).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _same(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_it_is_the_gradient_of_the_penalty() -> None:
    model = _network()
    penalty = SparsityPenalty(model, STRENGTH)

    model(_images()).square().mean().backward()
    penalty()

    _same(model, _by_hand(_network(), _images()))


def test_accumulation_adds_it_once() -> None:
    model = _network().eval()
    expected = _by_hand(_network().eval(), _images())
    penalty = SparsityPenalty(model, STRENGTH)

    for part in _images().split(2):
        (model(part).square().mean() / 2).backward()
    penalty()

    _same(model, expected)


def test_a_scaler_scales_it_too() -> None:
    model = _network()
    expected = _by_hand(_network(), _images())
    penalty = SparsityPenalty(model, STRENGTH)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    scaler.scale(model(_images()).square().mean()).backward()
    penalty(scaler)
    scaler.unscale_(optimizer)

    _same(model, expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_attached_it_steps_like_the_loss(scaled: bool, fused: bool) -> None:
    model, plain = _network(), _network()
    expected = _by_hand(plain, _images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=fused)
    handle = SparsityPenalty(model, STRENGTH).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    scaler.scale(model(_images()).square().mean()).backward()
    scaler.step(optimizer)

    for (name, new), old in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.5 * expected[name])
    handle.remove()
    before = model[4].weight.clone()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(model[4].weight, before)


def test_proximal_makes_zeros_and_does_not_cross_them() -> None:
    model = _network()
    before = [m.weight.clone() for m in (model[1], model[4])]

    SparsityPenalty(model, STRENGTH).proximal(5.0)

    for module, old in zip((model[1], model[4]), before, strict=True):
        expected = old.sign() * (old.abs() - 0.5).clamp(min=0)
        torch.testing.assert_close(module.weight.detach(), expected)
    assert (model[4].weight == 0).any()


def test_strength_by_layer() -> None:
    model = _network()
    penalty = SparsityPenalty(model, {"4": 0.5, "*": 0.25})
    for module in (model[1], model[4]):
        module.weight.grad = torch.zeros_like(module.weight)

    penalty()

    assert penalty.strengths == {"1": 0.25, "4": 0.5}
    assert torch.equal(model[1].weight.grad, 0.25 * model[1].weight.sign())
    assert torch.equal(model[4].weight.grad, 0.5 * model[4].weight.sign())
    value = 0.25 * model[1].weight.abs().sum() + 0.5 * model[4].weight.abs().sum()
    torch.testing.assert_close(penalty.value(), value.detach())


def test_frozen_scales_are_left_alone() -> None:
    model = _network()
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    penalty = SparsityPenalty(model, STRENGTH)

    model(_images()).square().mean().backward()
    penalty()
    penalty.proximal(1.0)

    assert model[1].weight.grad is None
    assert torch.equal(model[1].weight, before)


@pytest.mark.parametrize(
    ("model", "strength", "error", "message"),
    [
        (nn.Conv2d(3, 4, 3), 0.1, FastpruneError, "no batch norm with scales"),
        (nn.BatchNorm2d(4, affine=False), 0.1, FastpruneError, "no batch norm with scales"),
        (nn.Sequential(nn.BatchNorm2d(4)), {"layer*": 0.1}, FastpruneError, "'layer\\*'"),
        (nn.Sequential(nn.BatchNorm2d(4)), -0.1, ValueError, "≥ 0, got -0.1"),
        (nn.Sequential(nn.BatchNorm2d(4)), float("nan"), ValueError, "≥ 0, got nan"),
    ],
)
def test_bad_input_is_refused(
    model: nn.Module, strength: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SparsityPenalty(model, strength)


def test_a_shared_scale_counts_once() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].weight = model[0].weight
    model[0].weight.grad = torch.zeros(4)
    penalty = SparsityPenalty(model, 0.5)

    penalty()

    assert model[0].weight.grad.tolist() == [0.5] * 4
    assert float(penalty.value()) == 2
    with pytest.raises(FastpruneError, match="'0' and '1' share their scales"):
        SparsityPenalty(model, {"0": 0.5, "1": 0.25})


def test_attached_it_reaches_the_scales_of_its_optimizer_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    first = torch.optim.SGD(model[0].parameters(), lr=1.0)
    second = torch.optim.SGD(model[1].parameters(), lr=1.0)
    penalty = SparsityPenalty(model, 0.5)
    penalty.attach(first)
    penalty.attach(second)

    (model(torch.ones(3, 4)) * 0).sum().backward()
    first.step()
    second.step()

    assert model[0].weight.tolist() == model[1].weight.tolist() == [0.5] * 4
    with pytest.raises(FastpruneError, match="trains no batch norm scale"):
        penalty.attach(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0))
    with pytest.raises(FastpruneError, match="closure"):
        first.step(lambda: torch.zeros(()))


def test_computed_scales_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())

    with pytest.raises(FastpruneError, match="the scales of '0' are computed"):
        SparsityPenalty(model, 0.5)


def test_it_compiles_whole() -> None:
    model = _network()
    for module in (model[1], model[4]):
        module.weight.grad = torch.zeros_like(module.weight)
    penalty = SparsityPenalty(model, STRENGTH)
    torch._dynamo.reset()

    torch.compile(lambda: penalty(), fullgraph=True, backend="aot_eager")()

    torch.testing.assert_close(model[4].weight.grad, STRENGTH * model[4].weight.detach().sign())


def test_a_strength_on_the_device_is_read_at_every_call() -> None:
    model, other = _network(), _network()
    strength = torch.tensor(0.0)
    penalty, plain = SparsityPenalty(model, strength), SparsityPenalty(other, 0.25)
    strength.fill_(0.25)
    for network, added in ((model, penalty), (other, plain)):
        network(_images()).square().mean().backward()
        added()
    _same(model, {name: p.grad for name, p in other.named_parameters()})
    torch.testing.assert_close(penalty.value(), plain.value())
    penalty.proximal(torch.tensor(0.5))
    plain.proximal(0.5)
    assert torch.equal(model[1].weight, other[1].weight)
    assert torch.equal(model[4].weight, other[4].weight)
    for wrong in (torch.zeros(2), torch.zeros((), dtype=torch.float64)):
        with pytest.raises(ValueError, match="expected a 0-dim float32 tensor"):
            SparsityPenalty(model, wrong)
