"""Zeros of the activations of whole networks."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torchvision
from torch import nn

from fastprune.errors import FastpruneError
from fastprune.nn import ActivationStatistics


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU6(),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def test_counts_are_those_of_the_outputs() -> None:
    model = _network()
    images = torch.randn(6, 3, 9, 9)
    model(images)

    with ActivationStatistics(model) as stats:
        for part in images.split(4):
            model(part)

    first = model[:2](images)
    second = model[:4](images)
    assert torch.equal(stats.zeros()["1"], (first == 0).sum((0, 2, 3)))
    assert torch.equal(stats.zeros()["3"], (second == 0).sum((0, 2, 3)))
    expected = (second == 0).double().mean((0, 2, 3))
    assert torch.allclose(stats.apoz()["3"], expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_batch_size_does_not_matter(batch: int) -> None:
    torch.manual_seed(0)
    model = _network().eval()
    images = torch.randn(7, 3, 9, 9)
    model(images)

    def count(size: int) -> dict[str, torch.Tensor]:
        with ActivationStatistics(model) as stats, torch.inference_mode():
            for part in images.split(size):
                model(part)
        return stats.apoz()

    whole, parts = count(7), count(batch)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_module_called_three_times_has_three_entries() -> None:
    model = torchvision.models.resnet50(weights=None).eval()

    with ActivationStatistics(model, ["layer1.0.relu", "relu"]) as stats, torch.no_grad():
        for _ in range(2):
            model(torch.randn(1, 3, 32, 32))

    assert {name: len(zeros) for name, zeros in stats.zeros().items()} == {
        "relu": 64,
        "layer1.0.relu": 64,
        "layer1.0.relu#2": 64,
        "layer1.0.relu#3": 256,
    }


def test_hooks_are_gone_after_the_block_and_after_an_error() -> None:
    model = _network()
    with pytest.raises(RuntimeError), ActivationStatistics(model):
        model(torch.randn(2, 5, 9, 9))

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model[:5].modules())


def test_the_network_is_left_as_it_was() -> None:
    model = _network()
    images = torch.randn(2, 3, 9, 9)
    expected = model(images)
    before = copy.deepcopy(model.state_dict())

    with ActivationStatistics(model):
        assert torch.equal(model(images), expected)

    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_goes_on_under_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    images = torch.randn(2, 3, 5, 5)
    model(images).sum().backward()
    expected = model[0].weight.grad.clone()
    model.zero_grad()

    with ActivationStatistics(model):
        model(images).sum().backward()

    assert torch.equal(model[0].weight.grad, expected)


def test_a_layer_that_is_not_called_is_named() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.ReLU(), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Skips()
    with ActivationStatistics(model) as stats:
        model(torch.randn(2, 3))

    with pytest.raises(FastpruneError, match=r"1 of 2 layers were not called \(idle\)"):
        stats.apoz()


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), None, "no ReLU module"),
        (nn.Sequential(nn.ReLU()), ["1*"], "'1*' matches no module"),
    ],
)
def test_bad_choices_are_refused(model: nn.Module, layers: list[str] | None, message: str) -> None:
    with pytest.raises(FastpruneError) as refusal:
        ActivationStatistics(model, layers)

    assert message in str(refusal.value)


def test_an_output_that_has_no_channels_is_refused_by_name() -> None:
    model = nn.Sequential(nn.LSTM(3, 4))

    with (
        pytest.raises(FastpruneError, match=r"'0' one floating tensor .* got a tuple"),
        ActivationStatistics(model, ["0"]),
    ):
        model(torch.randn(2, 5, 3))


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).mean((2, 3))


def test_a_part_that_is_called_has_one_entry() -> None:
    model = Features()
    parts = torch.randn(4, 8, 3, 4, 4)
    with ActivationStatistics(model) as stats, torch.no_grad():
        for x in parts:
            model.features(x)
        outputs = model.relu(model.conv(parts.flatten(0, 1)))
    expected = (outputs == 0).double().mean((0, 2, 3))
    assert list(stats.apoz()) == ["relu"]
    assert torch.equal(stats.apoz()["relu"], expected)


def test_a_network_that_was_compiled_before_is_counted_whole() -> None:
    model = Features()
    compiled = torch.compile(model, backend="eager")
    parts = [torch.randn(n, 3, 4, 4) for n in (8, 5)]
    with torch.no_grad():
        compiled(parts[0])
        with ActivationStatistics(model) as stats:
            for x in parts:
                compiled(x)
        outputs = torch.cat([model.features(x) for x in parts])
    assert torch.equal(stats.apoz()["relu"], (outputs == 0).double().mean((0, 2, 3)))


def test_threads_lose_no_counts() -> None:
    model = Features()
    x = torch.randn(2, 3, 4, 4)

    def run() -> None:
        with torch.no_grad():
            for _ in range(100):
                model(x)

    with ActivationStatistics(model) as stats:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(stats.zeros()) == ["relu"]
    expected = (model.features(x) == 0).sum((0, 2, 3))
    assert torch.equal(stats.zeros()["relu"], expected * 400)
    assert torch.equal(stats.apoz()["relu"], expected.double() / 32)
