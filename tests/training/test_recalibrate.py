from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastprune.data import Splits
from fastprune.training import recalibrate_batch_norm


def test_statistics_are_means_over_the_batches(
    make_model: Callable[..., nn.Sequential], few_digits: Splits
) -> None:
    model = make_model()
    model[1].momentum = 0.3
    model[4].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    inputs: list[torch.Tensor] = []
    hook = model[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    recalibrate_batch_norm(model, few_digits.train, 3, "cpu")
    hook.remove()
    assert len(inputs) == 3
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].num_batches_tracked == 3
    assert model[1].momentum == 0.3
    assert model[4].momentum == 0.1
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())
    # Dropout drew nothing: it stayed off.
    assert torch.equal(before, torch.get_rng_state())


def test_one_batch_of_all_images_gives_the_population(few_digits: Splits) -> None:
    norm = nn.BatchNorm2d(3)
    recalibrate_batch_norm(norm, few_digits.test, 99, "cpu")
    x = next(few_digits.test.epoch(0))[0]
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)))


@pytest.mark.parametrize("batches", [0, 2])
def test_nothing_happens_without_batch_norms_or_batches(
    make_model: Callable[..., nn.Sequential], few_digits: Splits, batches: int
) -> None:
    model = make_model(norm=batches == 0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recalibrate_batch_norm(model, few_digits.train, batches, "cpu")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
