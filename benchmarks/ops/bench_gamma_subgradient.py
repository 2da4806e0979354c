"""The sparsity penalty of all batch norms, against the usual loop and against ``_foreach``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from _gpu import compare_gpu
from _interleave import compare
from torch import Tensor, nn

from fastprune import models
from fastprune.ops import gamma_penalty, gamma_proximal_, gamma_subgradient_

STRENGTH = 1e-4

# Few and long: between two rounds garbage is collected, which takes as long as 10,000 calls of
# ours and leaves cold caches to the next few.
ROUNDS = 12

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: torchvision.models.resnet50(weights=None),
    "preresnet164": lambda: models.build("preresnet164_cifar"),
}


class Penalised:
    """A network with random scales and gradients."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.model = NETWORKS[name]().to(device)
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        self.scales: list[Tensor] = [norm.weight for norm in norms]
        for scale in self.scales:
            scale.data.normal_()
            scale.grad = torch.randn_like(scale).detach()
        self.gradients = [scale.grad for scale in self.scales if scale.grad is not None]
        self.count = sum(scale.numel() for scale in self.scales)
        # Read γ, read and write the gradient.
        self.bytes = 12 * self.count

    def ours(self) -> None:
        gamma_subgradient_(self.scales, self.gradients, STRENGTH)

    def loop(self) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                scale: Any = module.weight
                scale.grad.data.add_(STRENGTH * torch.sign(scale.data))

    @torch.no_grad()
    def foreach(self) -> None:
        torch._foreach_add_(self.gradients, torch._foreach_sign(self.scales), alpha=STRENGTH)

    @torch.no_grad()
    def foreach_proximal(self) -> None:
        left = torch._foreach_abs(self.scales)
        torch._foreach_sub_(left, STRENGTH)
        torch._foreach_clamp_min_(left, 0.0)
        torch._foreach_sign_(self.scales)
        torch._foreach_mul_(self.scales, left)

    @torch.no_grad()
    def penalty(self) -> Tensor:
        return gamma_penalty(self.scales)

    @torch.no_grad()
    def foreach_penalty(self) -> Tensor:
        return torch.stack(torch._foreach_norm(self.scales, 1)).sum()

    def check(self) -> None:
        """Ours and the rivals do the same."""
        found = []
        start = [gradient.clone() for gradient in self.gradients]
        for way in (self.ours, self.loop, self.foreach):
            for gradient, first in zip(self.gradients, start, strict=True):
                gradient.copy_(first)
            way()
            found.append([gradient.clone() for gradient in self.gradients])
        for other in found[1:]:
            for mine, theirs in zip(found[0], other, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)
        torch.testing.assert_close(self.penalty(), self.foreach_penalty())

    def check_proximal(self) -> None:
        start = [scale.detach().clone() for scale in self.scales]
        gamma_proximal_(self.scales, STRENGTH)
        mine = [scale.detach().clone() for scale in self.scales]
        for scale, first in zip(self.scales, start, strict=True):
            scale.data.copy_(first)
        self.foreach_proximal()
        for scale, expected in zip(mine, self.scales, strict=True):
            assert torch.equal(scale, expected.detach())

    def facts(self, device: str) -> dict[str, Any]:
        shape = [len(self.scales), self.count]
        return {"bytes": self.bytes, "shape": shape, "dtype": "float32", "device": device}


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", NETWORKS)
def bench_subgradient_against_the_loop(benchmark: Any, gate: Any, name: str) -> None:
    network = Penalised(name)
    network.check()
    found = compare(benchmark, network.ours, network.loop, rounds=ROUNDS, calls=100)
    gate(
        f"ops/gamma_subgradient/{name}_loop",
        found,
        rival="loop over modules",
        **network.facts("cpu"),
    )


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", NETWORKS)
def bench_subgradient_against_foreach(benchmark: Any, gate: Any, name: str) -> None:
    network = Penalised(name)
    network.check()
    found = compare(benchmark, network.ours, network.foreach, rounds=ROUNDS, calls=500)
    gate(f"ops/gamma_subgradient/{name}_foreach", found, rival="_foreach", **network.facts("cpu"))


@pytest.mark.benchmark(timer=time.process_time)
def bench_proximal_against_foreach(benchmark: Any, gate: Any) -> None:
    network = Penalised("resnet50")
    network.check_proximal()
    found = compare(
        benchmark,
        lambda: gamma_proximal_(network.scales, STRENGTH),
        network.foreach_proximal,
        rounds=ROUNDS,
        calls=200,
    )
    gate("ops/gamma_subgradient/proximal", found, rival="_foreach", **network.facts("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rival", ["loop", "foreach"])
def bench_subgradient_on_a_gpu(gate: Any, gpu: Any, benchmark: Any, name: str, rival: str) -> None:
    network = Penalised(name, "cuda")
    network.check()
    ours = gamma_subgradient_.explain(network.scales, network.gradients, STRENGTH)
    assert ours.backend == "cuda", str(ours)
    assert launches(network.ours) == 1
    other = network.loop if rival == "loop" else network.foreach
    # A training loop waits for the host here, not for the device: its time counts. The scales stay
    # in the L2, as they do for everybody: 319 kB.
    found = compare_gpu(lambda _: network.ours(), lambda _: other(), [None], queued=False)
    gate(f"gpu/gamma_subgradient/{name}_{rival}", found, rival=rival, **network.facts("cuda"))


def launches(call: Callable[[], object]) -> int:
    """Kernels and copies that a call starts on the GPU."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())
