"""What rounding explains, and what it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastprune import models
from fastprune.errors import ArtifactError
from fastprune.run.export._agreement import agreement, expected_of
from fastprune.testing.surgery import fill


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fill(models.build("resnet20_cifar", depth=8)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_other_ways_of_rounding_agree(network: nn.Module, images: torch.Tensor) -> None:
    expected = expected_of(network, images, "net")
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(network).double()

    for got in (
        torch.cat([network(image) for image in images.split(1)]),
        last(images.to(memory_format=torch.channels_last)),
        exact(images.double()).float(),
    ):
        found = agreement(expected, got, "net")
        assert 0 < found.difference <= found.tolerance
        assert found.same == found.images == 8


def _eps(network: nn.Module) -> None:
    layer = network.get_submodule("layer2.0.bn1")
    assert isinstance(layer, nn.BatchNorm2d)
    layer.eps = 1e-4


def _weight(network: nn.Module) -> None:
    with torch.no_grad():
        network.get_parameter("layer1.0.conv1.weight")[0, 0, 0, 0] *= 1.1


def _shift(network: nn.Module) -> None:
    with torch.no_grad():
        network.get_buffer("layer3.0.bn2.running_mean").mul_(1.0001)


@pytest.mark.parametrize("change", [_eps, _weight, _shift])
def test_a_constant_or_a_weight_that_is_another_does_not(
    change: Callable[[nn.Module], None], network: nn.Module, images: torch.Tensor
) -> None:
    other = copy.deepcopy(network)
    change(other)
    with torch.no_grad():
        got = other(images)

    with pytest.raises(ArtifactError, match="differ from those of the pruned network by"):
        agreement(expected_of(network, images, "net"), got, "net as onnx")


@torch.no_grad()
def test_outputs_that_are_no_numbers_do_not(network: nn.Module, images: torch.Tensor) -> None:
    expected = expected_of(network, images, "net")

    with pytest.raises(ArtifactError, match="by nan"):
        agreement(expected, expected.outputs * float("nan"), "net")
    with pytest.raises(ArtifactError, match=r"shape \[8, 9\], the pruned network \[8, 10\]"):
        agreement(expected, expected.outputs[:, :9], "net")


@torch.no_grad()
def test_classes_that_tie_may_change_places() -> None:
    class Tie(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.sum(1), x.sum(1) * (1 + 1e-7)], 1)

    images = torch.full((3, 2), 1.0)
    expected = expected_of(Tie(), images, "net")
    got = expected.outputs.flip(1)

    found = agreement(expected, got, "net")

    assert found.difference <= found.tolerance
    assert found.same == 0


def test_only_classifiers_are_compared(images: torch.Tensor) -> None:
    with pytest.raises(ArtifactError, match=r"expected outputs \[N, classes\], got \[8, 3"):
        expected_of(nn.Identity(), images, "net")
