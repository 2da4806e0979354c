"""The pass that counts zeros, against a forward pass that counts nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _gpu import compare_gpu
from _interleave import compare
from torch import nn

from fastprune.criteria import zero_counts
from fastprune.graph import ChannelGraph, trace
from fastprune.models import registry
from fastprune.testing import fill

NETWORKS = {"resnet20_cifar": 64, "vgg16_cifar": 32}


def opened(name: str, device: Any) -> tuple[nn.Module, ChannelGraph, torch.Tensor]:
    model = fill(registry.get(name).build(num_classes=10)).to(device).eval()
    graph = trace(model, torch.zeros(1, 3, 32, 32, device=device))
    return model, graph, torch.randn(NETWORKS[name], 3, 32, 32, device=device)


def assert_right(model: nn.Module, graph: ChannelGraph, x: torch.Tensor) -> None:
    """One pass against its parts merged."""
    whole = zero_counts(model, graph, [(x, x)])
    parts = [zero_counts(model, graph, [(one, one)]) for one in x.split(9)]
    merged = parts[0].merged(*parts[1:])
    assert torch.equal(whole.elements, merged.elements)
    # Convolutions of other batch sizes may round otherwise.
    assert (whole.zeros - merged.zeros).abs().max() <= 1e-4 * whole.elements.max()
    assert whole.zeros.any()


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", NETWORKS)
def bench_apoz(benchmark: Any, gate: Callable[..., None], name: str) -> None:
    model, graph, x = opened(name, "cpu")
    assert_right(model, graph, x)
    batches = [(x, x)] * 2

    def plain() -> None:
        with torch.no_grad():
            for images, _ in batches:
                model(images)

    found = compare(benchmark, lambda: zero_counts(model, graph, batches), plain, rounds=15)
    gate(
        f"criteria/apoz/{name}",
        found,
        at_most=True,
        rival="forward pass",
        images=2 * len(x),
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def bench_apoz_gpu(gpu: torch.device, gate: Callable[..., None], name: str) -> None:
    model, graph, x = opened(name, gpu)
    x = x.repeat(16, 1, 1, 1)

    def plain(images: torch.Tensor) -> None:
        with torch.no_grad():
            for _ in range(4):
                model(images)

    found = compare_gpu(
        lambda images: zero_counts(model, graph, [(images, images)] * 4),
        plain,
        [x],
        # Counts are read at the end, so calls cannot be issued ahead.
        queued=False,
    )
    gate(
        f"gpu/criteria/apoz/{name}",
        found,
        at_most=True,
        rival="forward pass",
        images=4 * len(x),
        device="cuda",
    )
