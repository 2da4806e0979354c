"""ResNet-50's 53 convolutions, half of the channels on both sides: one pass against two steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _interleave import compare
from _networks import network
from torch import Tensor, nn

from fastprune.ops import GatherPlan, gather_channels

Kept = list[tuple[Tensor, Tensor]]

CALLS = 3


def convolutions() -> list[Tensor]:
    model, _ = network("resnet50")
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]


def halves(weights: list[Tensor]) -> Kept:
    """A random half of the channels on both sides; the images' three stay."""
    generator = torch.Generator().manual_seed(0)

    def half(channels: int) -> Tensor:
        if channels == 3:
            return torch.arange(3)
        return torch.randperm(channels, generator=generator)[: channels // 2].sort().values

    return [(half(w.shape[0]), half(w.shape[1])) for w in weights]


def plan_of(weights: list[Tensor], kept: Kept) -> GatherPlan:
    return GatherPlan.of([w.shape for w in weights], [{0: o, 1: i} for o, i in kept])


def two_steps(weights: list[Tensor], kept: Kept) -> list[Tensor]:
    """What pruning code usually does: index and clone, once a side."""
    return [w[o].clone()[:, i].clone() for w, (o, i) in zip(weights, kept, strict=True)]


def index_select(weights: list[Tensor], kept: Kept) -> list[Tensor]:
    return [
        w.index_select(0, o).index_select(1, i) for w, (o, i) in zip(weights, kept, strict=True)
    ]


def strided_copy(weights: list[Tensor], kept: Kept) -> list[Tensor]:
    """Every second channel: the same bytes, found without looking anything up."""
    return [(w[::2] if w.shape[1] == 3 else w[::2, ::2]).contiguous() for w in weights]


def moved(results: list[Tensor]) -> int:
    """Bytes read and written of what is kept: the floor."""
    return 2 * sum(t.numel() * t.element_size() for t in results)


@pytest.mark.parametrize(
    ("name", "rival", "what", "at_most"),
    [
        ("two_steps", two_steps, "index and clone, twice", False),
        ("index_select", index_select, "index_select twice", False),
        ("strided_copy", strided_copy, "strided copy of the same bytes", True),
    ],
)
@pytest.mark.benchmark(timer=time.process_time)
def bench_gather_channels(
    name: str,
    rival: Callable[[list[Tensor], Kept], list[Tensor]],
    what: str,
    at_most: bool,
    benchmark: Any,
    gate: Callable[..., None],
) -> None:
    weights = convolutions()
    kept = halves(weights)
    plan = plan_of(weights, kept)
    results = gather_channels(weights, plan)
    for got, expected in zip(results, two_steps(weights, kept), strict=True):
        assert torch.equal(got, expected)

    found = compare(
        benchmark,
        lambda: gather_channels(weights, plan),
        lambda: rival(weights, kept),
        rounds=20,
        calls=CALLS,
    )
    gate(
        f"ops/gather_channels/{name}",
        found,
        rival=what,
        at_most=at_most,
        bytes=moved(results),
        shape="resnet50, 53 convolutions, half x half",
        dtype="float32",
        device="cpu",
    )


@pytest.mark.gpu
def bench_gather_channels_gpu(
    gpu: torch.device, gate: Callable[..., None], gate_fraction: Callable[..., None]
) -> None:
    from _gpu import compare_gpu, rotated

    shapes = [w.shape for w in convolutions()]

    def make() -> list[Tensor]:
        return [torch.randn(shape, device=gpu) for shape in shapes]

    first = make()
    kept = [(o.to(gpu), i.to(gpu)) for o, i in halves(first)]
    plan = plan_of(first, kept)
    results = gather_channels(first, plan)
    assert gather_channels.explain(first, plan).backend == "cuda"
    for got, expected in zip(results, two_steps(first, kept), strict=True):
        assert torch.equal(got, expected)
    inputs = rotated(make, moved(results))
    facts = {
        "bytes": moved(results),
        "shape": "resnet50, 53 convolutions, half x half",
        "dtype": "float32",
        "device": "cuda",
    }

    def ours(weights: list[Tensor]) -> list[Tensor]:
        return gather_channels(weights, plan)

    # Queued, the times are of the device alone.
    found = compare_gpu(ours, lambda weights: index_select(weights, kept), inputs)
    seconds, nbytes = found.ours.best, facts.pop("bytes")
    gate_fraction("gpu/gather_channels/bandwidth", seconds, nbytes, "copy", **facts)
    # What a program sees, the host's work included: the two steps are 212 launches.
    found = compare_gpu(ours, lambda weights: two_steps(weights, kept), inputs, queued=False)
    gate(
        "gpu/gather_channels/two_steps",
        found,
        rival="index and clone, twice",
        bytes=nbytes,
        **facts,
    )
