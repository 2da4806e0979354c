"""The calls of a network whose time depends on its widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastprune as fp
from fastprune import models
from fastprune.graph import ChannelGraph
from fastprune.latency.calls import Call, calls_of, matrix_calls
from fastprune.testing import random_plan


def traced(name: str) -> tuple[torch.nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    options = {"depth": 8} if name == "resnet20_cifar" else {}
    model = models.build(name, **options).eval()
    return model, fp.trace(model, torch.zeros(1, 3, 32, 32))


def width(form: np.ndarray | None, widths: np.ndarray) -> int:
    return 0 if form is None else round(float(form[0] + form[1:] @ widths))


@pytest.mark.parametrize(
    "name", ["resnet20_cifar", "mobilenet_cifar", "vgg11_cifar", "googlenet_cifar"]
)
def test_shapes_are_those_of_the_pruned_network(name: str) -> None:
    model, graph = traced(name)
    plan = random_plan(graph, 0)
    widths = graph.width_vector(plan)
    small = fp.trace(fp.apply_plan(model, graph, plan), torch.zeros(1, 3, 32, 32))
    checked = 0
    for call in calls_of(graph, 4):
        if call.op.name in ("cat", "pad"):
            continue  # Their parts are taken to shrink alike, which is near enough for time.
        sizes = call.kind.sizes(width(call.inputs, widths), width(call.outputs, widths))
        for value, size in zip(small.program.ops[call.op.index].inputs, sizes, strict=True):
            of_images = value.source in ("input", "op")
            assert size == ((4, *value.shape[1:]) if of_images else tuple(value.shape))
        checked += 1
    assert checked > 20


def test_calls_alike_are_of_one_kind() -> None:
    _, graph = traced("resnet20_cifar")
    calls = calls_of(graph, 16)
    convolutions = [call for call in calls if call.kind.op == "conv2d"]

    assert len(convolutions) == 7
    assert len({call.kind for call in convolutions}) == 6
    assert len(matrix_calls(calls)) == 6  # The stem reads images, of which nothing is dropped.
    assert calls[0].kind.shapes[0] == (16, 3, 32, 32)


def test_depthwise_convolutions_follow_one_width() -> None:
    _, graph = traced("mobilenet_cifar")
    depthwise: list[Call] = [
        call for call in calls_of(graph, 1) if int(call.op.arg(6, "groups", 1)) > 1
    ]

    assert len(depthwise) == 13
    for call in depthwise:
        assert (call.kind.inputs, call.kind.unit) == (0, 1)
        channels = call.kind.outputs // 2
        x, weight = call.kind.sizes(0, channels)
        assert (x[1], weight[:2]) == (channels, (channels, 1))
