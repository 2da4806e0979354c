"""The ops on batch norm scales on CUDA: launches, synchronisation, graphs, streams, devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastprune.ops import gamma_penalty, gamma_proximal_, gamma_subgradient_

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def scales_of(*sizes: int, device: str = "cuda") -> list[Tensor]:
    return [nn.Parameter(torch.randn(size, device=device)) for size in sizes]


def gradients_of(scales: list[Tensor]) -> list[Tensor]:
    return [torch.randn_like(scale).detach() for scale in scales]


def after_loop(scales: list[Tensor], gradients: list[Tensor], strength: float) -> list[Tensor]:
    """The usual loop, on copies."""
    return [g + strength * torch.sign(s.detach()) for s, g in zip(scales, gradients, strict=True)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(mine, theirs), f"layer {i}: {mine}, expected {theirs}"


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if gamma_penalty.explain(scales_of(1)).backend != "cuda":
        pytest.skip("fastprune._C was compiled without CUDA")


def test_one_launch_and_no_synchronisation() -> None:
    scales = scales_of(*[64] * 200)
    gradients = gradients_of(scales)
    strength = torch.full((200,), 0.5, device="cuda")
    expected = after_loop(scales, gradients, 0.5)
    calls: list[Callable[[], object]] = [
        lambda: gamma_subgradient_(scales, gradients, strength),
        lambda: gamma_proximal_(scales, 0.0),
        lambda: gamma_penalty([s.detach() for s in scales]),
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls[0]()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal(gradients, expected)
    for call in calls:
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        assert len(kernels) == 1, [e.name for e in kernels]


def test_a_captured_graph_takes_the_present_strength() -> None:
    scales = scales_of(5, 64)
    gradients = gradients_of(scales)
    start = [g.clone() for g in gradients]
    strength = torch.tensor(1.0, device="cuda")
    gamma_subgradient_(scales, gradients, strength)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gamma_subgradient_(scales, gradients, strength)
    for gradient, first in zip(gradients, start, strict=True):
        gradient.copy_(first)
    strength.fill_(4.0)
    graph.replay()
    torch.cuda.synchronize()

    assert_equal(gradients, after_loop(scales, start, 4.0))


def test_the_current_stream_and_the_device_of_the_tensors() -> None:
    device = f"cuda:{torch.cuda.device_count() - 1}"
    scales = scales_of(64, device=device)
    gradients = gradients_of(scales)
    expected = after_loop(scales, gradients, 1.0)
    torch.cuda.synchronize(device)
    before = torch.cuda.current_device()
    with torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda._sleep(10_000_000)
        gradients[0].mul_(1.0)
        gamma_subgradient_(scales, gradients, 1.0)
        found = gradients[0].clone()

    assert torch.cuda.current_device() == before
    torch.cuda.synchronize(device)
    assert_equal([found], expected)


def test_strengths_on_another_device_are_refused() -> None:
    scales = scales_of(4)
    with pytest.raises(ValueError, match="strength: expected device cuda:0, as the scales have"):
        gamma_subgradient_(scales, gradients_of(scales), torch.tensor(1.0))
