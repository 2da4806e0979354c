"""Networks put together at random: whatever comes out, pruning is exact and counted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastprune.graph import trace
from fastprune.testing import Assembled, check_pruning, fill, random_plan

Step = Callable[[nn.Module, list[Tensor]], Tensor]
EXAMPLE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


class Author:
    """Writes a network step by step; each step reads values made before it.

    Attributes:
        shapes: channels and pixels a side of every value.
        parts: the network's layers and parameters.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shapes = [(3, 8)]
        self.steps: list[Step] = []
        self.parts: dict[str, Any] = {}

    def of(self, layer: Any, channels: int, i: int) -> None:
        name = f"m{len(self.parts)}"
        self.parts[name] = layer
        self.make(lambda m, v: getattr(m, name)(v[i]), channels, i)

    def make(self, step: Step, channels: int, i: int, factor: float = 1) -> None:
        self.steps.append(step)
        self.shapes.append((channels, int(self.shapes[i][1] * factor)))

    def write(self, steps: int) -> nn.Module:
        for _ in range(steps):
            i = self.random.randrange(max(0, len(self.shapes) - 4), len(self.shapes))
            self.random.choice((layer, layer, join, join, view, gate))(self, i, *self.shapes[i])
        widths = sum(channels for channels, _ in self.shapes)

        def run(m: nn.Module, x: Tensor) -> Tensor:
            values = [x]
            for step in self.steps:
                values.append(step(m, values))
            return m.last(torch.cat([value.mean((2, 3)) for value in values], 1))

        return Assembled(run, **self.parts, last=nn.Linear(widths, 3))


def layer(author: Author, i: int, channels: int, pixels: int) -> None:
    draw, groups = author.random, [g for g in (2, 3, 4) if channels % g == 0] or [1]
    g, out = draw.choice(groups), draw.choice((4, 6, 8, 12))
    kind = draw.randrange(7)
    if kind == 0:
        author.of(nn.Conv2d(channels, out, 3, padding=1), out, i)
    elif kind == 1:
        author.of(nn.Conv2d(channels, g * draw.choice((1, 2, 4)), 1, groups=g), 0, i)
        author.shapes[-1] = (author.parts[f"m{len(author.parts) - 1}"].out_channels, pixels)
    elif kind == 2:
        times = draw.choice((1, 2))
        author.of(nn.Conv2d(channels, channels * times, 1, groups=channels), channels * times, i)
    elif kind == 3:
        author.of(nn.ConvTranspose2d(channels, 2 * g, 3, padding=1, groups=g), 2 * g, i)
    elif kind == 4:
        author.of(nn.BatchNorm2d(channels, affine=draw.random() < 0.8), channels, i)
    elif kind == 5:
        author.of(nn.GroupNorm(g, channels), channels, i)
    else:
        used = [k for k, p in author.parts.items() if getattr(p, "in_channels", 0) == channels]
        if used:
            name = draw.choice(used)
            out = author.parts[name].out_channels
            author.make(lambda m, v: getattr(m, name)(v[i]), out, i)


def join(author: Author, i: int, channels: int, pixels: int) -> None:
    alike = [j for j, shape in enumerate(author.shapes) if shape == (channels, pixels)]
    near = [j for j, shape in enumerate(author.shapes) if shape[1] == pixels]
    j, k = author.random.choice(alike), author.random.choice(near)
    function = author.random.choice((torch.add, torch.mul, torch.maximum))
    if author.random.random() < 0.5:
        author.make(lambda m, v: function(v[i], v[j]), channels, i)
    else:
        author.make(lambda m, v: torch.cat([v[i], v[k]], 1), channels + author.shapes[k][0], i)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def view(author: Author, i: int, channels: int, pixels: int) -> None:
    draw, even = author.random, channels % 2 == 0
    low, high = draw.randint(0, 3), draw.randint(0, 3)
    kind = draw.randrange(9)
    if kind == 0 and even:
        author.make(lambda m, v: shuffled(v[i], 2), channels, i)
    elif kind == 1 and even:
        author.make(lambda m, v: F.glu(v[i], 1), channels // 2, i)
    elif kind == 2 and channels > 3:
        author.make(lambda m, v: v[i][:, 2:], channels - 2, i)
    elif kind == 3 and channels > 3:
        author.make(lambda m, v: v[i][:, : v[i].shape[1] // 2], channels // 2, i)
    elif kind == 4 and channels > 4:
        author.make(lambda m, v: v[i].split([3, v[i].shape[1] - 3], 1)[1], channels - 3, i)
    elif kind == 5:
        author.make(lambda m, v: F.pad(v[i], (0, 0, 0, 0, low, high)), channels + low + high, i)
    elif kind == 6 and pixels >= 4:
        author.make(lambda m, v: F.pixel_unshuffle(v[i], 2), channels * 4, i, 0.5)
    elif kind == 7 and channels % 4 == 0 and pixels <= 8:
        author.make(lambda m, v: F.pixel_shuffle(v[i], 2), channels // 4, i, 2)
    elif kind == 8:
        author.make(lambda m, v: v[i].repeat(1, 2, 1, 1), channels * 2, i)


def gate(author: Author, i: int, channels: int, pixels: int) -> None:
    kind, name = author.random.randrange(4), f"m{len(author.parts)}"
    if kind == 0:
        author.parts[name] = nn.Linear(channels, channels)
        author.make(
            lambda m, v: v[i] * getattr(m, name)(v[i].mean((2, 3)))[..., None, None], channels, i
        )
    elif kind == 1:
        author.parts[name] = nn.Conv2d(channels, 1, 1)
        author.make(lambda m, v: v[i] * torch.sigmoid(getattr(m, name)(v[i])), channels, i)
    elif kind == 2:
        author.parts[name] = nn.Parameter(torch.ones(channels))
        author.make(lambda m, v: v[i] * getattr(m, name).view(1, -1, 1, 1), channels, i)
    else:
        author.make(lambda m, v: F.relu(v[i] - v[i].mean((2, 3), keepdim=True)), channels, i)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_network(seed: int) -> None:
    model = fill(Author(seed).write(10)).double().eval()
    graph = trace(model, EXAMPLE)
    for draw in range(2 if graph.groups else 0):
        plan = random_plan(graph, draw, low=0.1, high=0.8)
        small = check_pruning(model, graph, plan, [EXAMPLE], batches=(1, 2))
        again = trace(small, EXAMPLE)

        assert again.widths() == {name: n for name, n in plan.widths().items() if n > 1}
        if again.groups:
            check_pruning(small, again, random_plan(again, 5), [EXAMPLE], batches=(2,))
