"""Experts: which layer is the head, and what is left without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastprune import models
from fastprune.errors import GraphError
from fastprune.nn import FusionHead
from fastprune.testing import fill
from fastprune.training.experts import Expert, FusedNetwork, head_of

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "options", "head", "features"),
    [
        ("resnet20_cifar", {"depth": 8}, "linear", 64),
        ("vgg16_cifar_abc", {}, None, 512),
        ("densenet40_cifar", {}, None, None),
        ("torchvision:resnet18", {}, "fc", 512),
        ("torchvision:mobilenet_v2", {}, "classifier.1", 1280),
    ],
)
def test_features_are_what_the_last_linear_layer_reads(
    name: str, options: dict[str, int], head: str | None, features: int | None
) -> None:
    model = fill(models.build(name, num_classes=10, **options)).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = head_of(model, SHAPE)
    assert head in (None, found)
    read = []
    images = torch.randn(3, *SHAPE)

    expert = Expert(model, SHAPE)
    given = expert(images)

    layer = model.get_submodule(found)
    assert isinstance(layer, nn.Linear)
    with layer.register_forward_pre_hook(lambda _, args: read.append(args[0])):
        model(images)
    assert given.shape == (3, expert.features)
    assert features in (None, expert.features)
    assert torch.equal(given, torch.tanh(read[0]))
    # The given network still has its head, and its weights.
    assert model.get_submodule(found) is layer
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_experts_are_frozen(make_model: Callable[..., nn.Module]) -> None:
    fused = FusedNetwork([Expert(make_model(), SHAPE)], FusionHead(32, 10))

    fused.train()

    assert fused.head.training
    assert not any(module.training for module in fused.experts[0].modules())
    assert {key for key, p in fused.named_parameters() if p.requires_grad} == {
        f"head.{key}" for key, _ in fused.head.named_parameters()
    }


def test_a_fused_network_reads_the_experts_side_by_side(
    make_model: Callable[..., nn.Module],
) -> None:
    experts = [Expert(make_model(seed=seed), SHAPE) for seed in (1, 2)]
    head = FusionHead(64, 10).eval()
    images = torch.randn(4, *SHAPE)

    given = FusedNetwork(experts, head)(images)

    assert torch.equal(given, head(torch.cat([experts[0](images), experts[1](images)], 1)))
    with pytest.raises(ValueError, match="head: expected 32 features, got one of 64"):
        FusedNetwork(experts[:1], head)


def test_the_same_batch_gives_the_same_bits_with_other_threads() -> None:
    expert = Expert(fill(models.build("resnet20_cifar", depth=8)), SHAPE)
    images = torch.randn(32, *SHAPE)
    one = expert(images)
    before = torch.get_num_threads()

    torch.set_num_threads(2)
    two = expert(images)
    torch.set_num_threads(before)

    assert torch.equal(one, two)


class Own(nn.Module):
    """A network with a head that no layer is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.square = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.zeros(8, 8))
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.kind == "convolution":
            return x.mean((2, 3))
        if self.kind == "positions":
            return self.square(x.flatten(2).transpose(1, 2))[:, 0]
        x = x.mean((2, 3))
        if self.kind == "probabilities":
            return self.square(x).softmax(1)
        if self.kind == "parameter":
            return functional.linear(x, self.weight)
        return self.square(self.square(x))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("convolution", "the network's output is made by mean; expected a last Linear layer"),
        ("positions", "the network's output is made by getitem; expected a last Linear"),
        ("probabilities", "the network's output is made by softmax; expected a last Linear"),
        ("parameter", "by a call of linear outside an nn.Linear; expected a layer"),
        ("twice", "square: expected a last layer that is called once"),
    ],
)
def test_networks_without_such_a_layer_are_refused(kind: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Expert(Own(kind), SHAPE)
