"""Two hundred prunes in one process."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch
from torch import Tensor, nn

import fastprune as fp
from fastprune import artifact

PRUNES = 200
ROOM = 10_000_000
"""Bytes by which the process may grow between the 50th and the last: what two of these prunes
make, of 150."""


def network() -> nn.Sequential:
    """Few layers, and 2.4 MB of weights."""
    return nn.Sequential(
        *(nn.Conv2d(3, 256, 3, stride=2), nn.BatchNorm2d(256), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)),
    ).eval()


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def tensors() -> int:
    """How many are alive."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_memory_over_200_prunes_is_flat(tmp_path: Path) -> None:
    model, example = network(), torch.zeros(1, 3, 12, 12)

    def once() -> int:
        found = fp.prune(model, example, budget={"macs": 0.9})
        artifact.save(tmp_path / "pruned", found.model, plan=found.plan, input_shape=(3, 12, 12))
        again = artifact.load(tmp_path / "pruned", model=model)
        assert torch.equal(again(example), found.model(example))
        return resident()

    held = [once() for _ in range(50)]
    count = tensors()
    held += [once() for _ in range(50, PRUNES)]

    assert tensors() == count
    assert held[-1] - held[49] < ROOM, held[::10]
