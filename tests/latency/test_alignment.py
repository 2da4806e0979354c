"""Which multiples of channels a device likes, and what a network is given of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastprune as fp
from fastprune import models
from fastprune.latency.alignment import alignment_of, preferred_multiple, tested_widths
from fastprune.testing.latency import FormulaClock
from fastprune.training.progress import SilentProgress


def steps(block: int) -> Callable[[int], float]:
    return lambda width: float((-(-width // block) * block) ** 2)


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 64])
def test_the_block_that_a_device_works_in_is_found(block: int) -> None:
    multiple, waste = preferred_multiple([[steps(block)(w) for w in tested_widths()]])

    # What smaller multiples lose in steps of up to eight of a hundred channels is under a tenth.
    assert multiple == {1: 1, 2: 1, 4: 1, 8: 4}.get(block, block)
    assert waste[0] == max(waste)


def test_a_device_that_is_slow_at_odd_widths() -> None:
    times = [w**2 * (1.5 if w % 8 else 1.0) for w in tested_widths()]

    assert preferred_multiple([times])[0] == 8


def test_layers_count_alike() -> None:
    free = [float(w**2) for w in tested_widths()]
    stepped = [steps(16)(w) for w in tested_widths()]

    assert preferred_multiple([free, free, free, stepped])[0] == 1
    assert preferred_multiple([free, stepped, stepped, stepped])[0] == 16


def test_a_network_gets_at_most_half_of_its_narrowest_group() -> None:
    graph = fp.trace(models.build("resnet20_cifar", depth=8), torch.zeros(1, 3, 32, 32))
    clock = FormulaClock(1, step=16)
    found = alignment_of(graph, clock, SilentProgress())

    assert (found.round_to, found.liked) == (8, 16)
    assert clock.layers == 2
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 3))
    graph = fp.trace(wide, torch.zeros(1, 3, 32, 32))
    assert alignment_of(graph, FormulaClock(1, step=16), SilentProgress()).round_to == 16
    assert alignment_of(graph, FormulaClock(2, step=1), SilentProgress()).round_to == 1


def test_a_network_without_dense_layers_that_vary_needs_none() -> None:
    graph = fp.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8))
    clock = FormulaClock()

    assert alignment_of(graph, clock, SilentProgress()) == (1, 1, ())
    assert clock.layers == 0
