from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.data import Splits
from fastprune.training import recalibrate_batch_norm


def pooled(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel of all of them, in float64."""
    values = torch.cat([x.double().transpose(0, 1).flatten(1) for x in inputs], 1)
    return values.mean(1), values.var(1)


def near(found: Tensor | None, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-7)


def test_statistics_are_those_of_all_values(
    make_model: Callable[..., nn.Sequential], few_digits: Splits
) -> None:
    model = make_model()
    model[1].momentum = 0.3
    model[4].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    inputs: list[Tensor] = []
    hook = model[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    recalibrate_batch_norm(model, few_digits.train, 3, "cpu")
    hook.remove()
    assert len(inputs) == 3
    mean, variance = pooled(inputs)
    near(model[1].running_mean, mean)
    near(model[1].running_var, variance)
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
    mean, variance = pooled([x])
    near(norm.running_mean, mean)
    near(norm.running_var, variance)


@pytest.mark.parametrize("batches", [0, 2])
def test_nothing_happens_without_batch_norms_or_batches(
    make_model: Callable[..., nn.Sequential], few_digits: Splits, batches: int
) -> None:
    model = make_model(norm=batches == 0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recalibrate_batch_norm(model, few_digits.train, batches, "cpu")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Batches:
    """A pipeline over given images."""

    def __init__(self, x: Tensor, batch_size: int) -> None:
        self.parts = x.split(batch_size)
        self.images, self.batches, self.batch_size = len(x), len(self.parts), batch_size

    def epoch(
        self, epoch: int, start: int = 0, **options: object
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.parts[start:]:
            yield part, torch.zeros(len(part), dtype=torch.int64)

    def close(self) -> None:
        pass


def test_the_batch_size_changes_rounding_alone() -> None:
    x = 100 + torch.arange(60.0).view(-1, 1, 1, 1) + torch.randn(60, 3, 5, 5)
    expected = pooled([x])
    for batch_size in (60, 17, 2):
        norm = nn.BatchNorm2d(3)
        recalibrate_batch_norm(norm, Batches(x, batch_size), 99, "cpu")
        near(norm.running_mean, expected[0])
        near(norm.running_var, expected[1])


class Activated(nn.BatchNorm2d):
    """Does more than its parent, like those of timm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x)) + 10


class ChannelsInside(nn.BatchNorm1d):
    """Takes ``[N, L, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("norm", [Activated(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm2d()])
def test_other_classes_run_their_own_code(norm: nn.Module) -> None:
    x = torch.randn(40, 3, 5, 5)
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda _, given, y: seen.append(y))
    hooks, momentum = len(norm._forward_pre_hooks), norm.momentum
    recalibrate_batch_norm(norm, Batches(x, 15), 99, "cpu")
    mean, variance = pooled([x])
    near(norm.running_mean, mean)
    near(norm.running_var, variance)
    assert norm.num_batches_tracked == 3
    assert norm.momentum == momentum
    assert len(norm._forward_pre_hooks) <= hooks
    y = F.batch_norm(x[:15], None, None, training=True)
    torch.testing.assert_close(seen[0], F.relu(y) + 10 if isinstance(norm, Activated) else y)


def test_channels_elsewhere_are_left_to_the_module() -> None:
    x = torch.randn(8, 4, 5)
    norm = ChannelsInside(5)
    recalibrate_batch_norm(norm, Batches(x, 8), 1, "cpu")
    near(norm.running_mean, x.double().mean((0, 1)))
    near(norm.running_var, x.double().transpose(1, 2).transpose(0, 1).flatten(1).var(1))


def test_odd_batch_norms() -> None:
    """Without weights, without statistics, never run, with a forward of the instance's own."""
    x = torch.randn(12, 3, 4, 4)
    bare, free, unused, own = (
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3),
    )
    unused.running_mean.fill_(7)
    plain = own.forward
    own.forward = lambda x: plain(x) * 2  # type: ignore[method-assign]
    model = nn.Sequential(bare, free, own)
    model.unused = unused
    model.forward = lambda x: own(free(bare(input=x)))  # type: ignore[method-assign]
    recalibrate_batch_norm(model, Batches(x, 5), 2, "cpu")
    mean, variance = pooled([x[:10]])
    near(bare.running_mean, mean)
    near(bare.running_var, variance)
    assert free.running_mean is None
    assert torch.equal(unused.running_mean, torch.zeros(3))
    assert unused.num_batches_tracked == 0
    assert own.num_batches_tracked == 2
    # The input of the third is normalised by batches of 5.
    near(own.running_mean, torch.zeros(3))
    assert "forward" in vars(own)
    assert all("forward" not in vars(norm) for norm in (bare, free, unused))


def test_a_failure_leaves_the_modules_as_they_were(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    model.insert(2, Activated(8))
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(model, Batches(torch.randn(4, 3, 7, 7), 2), 9, "cpu")
    assert all("forward" not in vars(module) for module in model.modules())
    assert not model[2]._forward_pre_hooks
    assert model[2].momentum == 0.1
    assert model.training


def test_one_value_a_channel_is_an_error() -> None:
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recalibrate_batch_norm(norm, Batches(torch.randn(1, 3), 1), 1, "cpu")


def test_a_compiled_network_is_seen() -> None:
    x = torch.randn(12, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    compiled.eval()(x)
    recalibrate_batch_norm(compiled, Batches(x, 6), 2, "cpu")
    mean, variance = pooled([model[0](x).detach()])
    near(model[1].running_mean, mean)
    near(model[1].running_var, variance)
    torch.testing.assert_close(compiled(x), model(x))


def test_the_network_normalises_as_in_training() -> None:
    """The same outputs as batch norms in training mode, to rounding, of every kind."""
    x = torch.randn(6, 4, 4, 4)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(2), nn.BatchNorm1d(4))
    nn.init.uniform_(model[0].weight)
    nn.init.normal_(model[2].bias)
    outputs: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, given, y: outputs.append(y))
    recalibrate_batch_norm(model, Batches(x, 6), 1, "cpu")
    hook.remove()
    torch.testing.assert_close(outputs[0], model.train()(x).detach())


def test_statistics_stay_after_an_error_and_without_a_batch() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(9, 3))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}

    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recalibrate_batch_norm(norm, Batches(torch.randn(4, 3), 3), 2, "cpu")
    nothing = Batches(torch.randn(3, 3), 3)
    nothing.epoch = lambda epoch, start=0, **options: iter(())
    recalibrate_batch_norm(norm, nothing, 2, "cpu")

    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, before[name])
