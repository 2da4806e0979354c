"""ReLU that counts its zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastprune.nn import ReLUWithZeroCount


def test_it_is_relu_and_it_counts() -> None:
    relu = ReLUWithZeroCount(5)
    images = torch.randn(4, 5, 6, 6)

    outputs = [relu(part) for part in images.split(3)]

    assert torch.equal(torch.cat(outputs), images.relu())
    assert torch.equal(relu.zeros, (images <= 0).sum((0, 2, 3)))
    assert torch.equal(relu.apoz(), (images <= 0).double().mean((0, 2, 3)))


def test_gradients_are_those_of_relu() -> None:
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(ReLUWithZeroCount(3), (images,))


def test_reset_starts_anew() -> None:
    relu = ReLUWithZeroCount(2)
    relu(-torch.ones(3, 2))
    assert relu.apoz().tolist() == [1.0, 1.0]

    relu.reset()

    assert relu.zeros.tolist() == [0, 0]
    assert relu.apoz().isnan().all()


def test_state_dict_is_that_of_relu() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    counting = nn.Sequential(nn.Conv2d(3, 4, 1), ReLUWithZeroCount(4))

    counting.load_state_dict(plain.state_dict())


def test_it_compiles_whole_and_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), ReLUWithZeroCount(4))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 5, 5)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            compiled(images).sum().backward()

    assert torch.equal(model[1].zeros, 3 * (model[0](images) <= 0).sum((0, 2, 3)))
    assert model[1].positions == 3 * 2 * 25


def test_channels_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        ReLUWithZeroCount(0)
    with pytest.raises(ValueError, match=r"counter: expected shape \[3\]"):
        ReLUWithZeroCount(2)(torch.randn(1, 3))


def test_checkpointing_keeps_the_share_of_zeros() -> None:
    relu = ReLUWithZeroCount(3)
    x = torch.randn(8, 3, requires_grad=True)

    torch.utils.checkpoint.checkpoint(relu, x, use_reentrant=False).sum().backward()

    assert torch.equal(relu.apoz(), (x <= 0).double().mean(0))


def test_counters_follow_the_network_and_are_nobodys_buffers() -> None:
    model = nn.Sequential(ReLUWithZeroCount(3))

    assert not list(model.buffers())
    model.half().to("meta")
    assert model[0].zeros.device.type == "meta"
    assert model[0].zeros.dtype == torch.int64


def test_counters_start_at_zero_after_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), ReLUWithZeroCount(4))
    model.to_empty(device="cpu")
    assert int(model[1].positions) == 0
    assert model[1].zeros.tolist() == [0] * 4


def test_counters_stay_whole_numbers() -> None:
    relu = ReLUWithZeroCount(2)
    relu(torch.tensor([[-1.0, 1.0]]))
    relu.type(torch.float32).to_empty(device="cpu")
    relu(torch.tensor([[-1.0, 1.0]]))
    assert relu.zeros.tolist() == [2, 0]
    assert int(relu.positions) == 2
