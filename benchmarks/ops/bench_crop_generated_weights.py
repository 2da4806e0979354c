"""Weights of 16 evolved candidates at once, against whole weights made one by one and cropped.

The layers are those of MetaPruning's pruningnet for ResNet-50, every shape of a convolution once:
20 of 53, 1.1 GB of FC2 out of 3.1. Shapes that come several times in the network are not counted
several times, so the small, early layers weigh more here than there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import crop_generated_weights

CANDIDATES = 16
HIDDEN = 32
LEVELS = 31
OUTPUTS = (64, 256, 512, 1024, 2048)
BLOCKS = (3, 4, 6, 3)


@dataclass(frozen=True, slots=True)
class Convolution:
    """Of ResNet-50, with the places in a gene that its widths and its encoding come from.

    Place -1 stands for 1.0: the image's channels and the last stage are never cropped.
    """

    shape: tuple[int, int, int, int]
    out: int
    inside: int
    encoding: tuple[int, ...]


def convolutions() -> list[Convolution]:
    """Every shape once, where it first comes: ids 0 to 3 are stages, 4 to 19 middles."""
    found = [Convolution((64, 3, 7, 7), 0, -1, (0,))]
    middle = 4
    for stage, blocks in enumerate(BLOCKS, start=1):
        wide, narrow = OUTPUTS[stage], OUTPUTS[stage] // 4
        outer = stage if stage < 4 else -1
        for block in range(blocks):
            before, source = (OUTPUTS[stage - 1], stage - 1) if block == 0 else (wide, outer)
            encoding = (middle, source, outer)
            found += [
                Convolution((narrow, before, 1, 1), middle, source, encoding),
                Convolution((narrow, narrow, 3, 3), middle, middle, encoding),
                Convolution((wide, narrow, 1, 1), outer, middle, encoding),
            ]
            if block == 0:
                found.append(Convolution((wide, before, 1, 1), outer, source, encoding))
            middle += 1
    return list({c.shape: c for c in reversed(found)}.values())[::-1]


def evolved(generator: np.random.Generator) -> np.ndarray:
    """Genes ``[16, 20]``: mutations of one parent, each id with probability 0.1."""
    parent = generator.integers(0, LEVELS, 20)
    steps = generator.integers(1, LEVELS, (CANDIDATES, 20))
    mutated = generator.random((CANDIDATES, 20)) < 0.1
    return np.where(mutated, (parent + steps) % LEVELS, parent)


class Layer:
    """One convolution's two fully connected layers, and what 16 genes make of it."""

    def __init__(
        self, convolution: Convolution, genes: np.ndarray, device: str, dtype: torch.dtype
    ) -> None:
        genes = np.concatenate([genes, np.full((len(genes), 1), LEVELS - 1)], axis=1)
        percent = 10 + 3 * genes
        self.shape = convolution.shape
        self.outs = (self.shape[0] * percent[:, convolution.out] // 100).tolist()
        self.ins = (self.shape[1] * percent[:, convolution.inside] // 100).tolist()
        scales = torch.tensor(percent[:, list(convolution.encoding)] / 100)
        self.encodings = scales.to(device, dtype)
        rows = torch.Size(self.shape).numel()
        # Numbers drawn once for a piece and repeated: drawing all takes longer than the benchmark.
        piece = (torch.rand(min(rows, 65536), HIDDEN + 1) - 0.5).to(device, dtype)
        piece = piece.repeat(-(-rows // len(piece)), 1)[:rows]
        self.fc2 = (piece[:, :HIDDEN].contiguous(), piece[:, HIDDEN].contiguous())
        features = len(convolution.encoding)
        self.fc1 = tuple(
            (torch.rand(size) - 0.5).to(device, dtype) for size in ((HIDDEN, features), HIDDEN)
        )

    def ours(self) -> list[Tensor]:
        return crop_generated_weights(
            self.encodings,
            *self.fc1,
            *self.fc2,
            shape=self.shape,
            out_channels=self.outs,
            in_channels=self.ins,
        )

    def one_by_one(self) -> list[Tensor]:
        found = []
        for k, (out, inside) in enumerate(zip(self.outs, self.ins, strict=True)):
            hidden = F.relu(F.linear(self.encodings[k : k + 1], *self.fc1))
            whole = F.linear(hidden, *self.fc2).view(self.shape)
            found.append(whole[:out, :inside].contiguous())
        return found

    def check(self) -> None:
        for mine, theirs in zip(self.ours(), self.one_by_one(), strict=True):
            torch.testing.assert_close(mine, theirs)

    def traffic(self) -> int:
        """Bytes of FC2's rows that some candidate keeps, once, and of what is written."""
        kept = torch.zeros(self.shape[:2], dtype=torch.bool)
        for out, inside in zip(self.outs, self.ins, strict=True):
            kept[:out, :inside] = True
        positions = self.shape[2] * self.shape[3]
        written = sum(out * inside for out, inside in zip(self.outs, self.ins, strict=True))
        rows = int(kept.sum()) * (HIDDEN + 1)
        return (rows + written) * positions * self.encodings.element_size()


@pytest.mark.benchmark(timer=time.process_time)
@torch.no_grad()
def bench_resnet50(benchmark: Any, gate: Callable[..., None]) -> None:
    genes = evolved(np.random.default_rng(0))
    layers = [Layer(c, genes, "cpu", torch.float32) for c in convolutions()]
    for layer in layers:
        layer.check()

    def ours() -> None:
        for layer in layers:
            layer.ours()

    def one_by_one() -> None:
        for layer in layers:
            layer.one_by_one()

    found = compare(benchmark, ours, one_by_one, rounds=6, rival_rounds=2)
    gate(
        "ops/crop_generated_weights/resnet50",
        found,
        rival="whole weights, one by one, cropped",
        bytes=sum(layer.traffic() for layer in layers),
        shape=[layer.shape for layer in layers],
        candidates=CANDIDATES,
        dtype="float32",
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.no_grad()
def bench_on_a_gpu(
    gate: Callable[..., None],
    gate_fraction: Callable[..., None],
    gpu: torch.device,
    benchmark: Any,
    dtype: torch.dtype,
) -> None:
    """One layer, 302 MB of FC2 in float32: with all of them the rival launches 2,000 kernels."""
    convolution = next(c for c in convolutions() if c.shape == (512, 512, 3, 3))
    genes = evolved(np.random.default_rng(0))
    first = Layer(convolution, genes, "cuda", dtype)
    first.check()
    inputs = rotated(lambda: Layer(convolution, genes, "cuda", dtype), first.traffic())
    found = compare_gpu(Layer.ours, Layer.one_by_one, inputs)
    label = "fp32" if dtype == torch.float32 else "bf16"
    facts = {
        "shape": convolution.shape,
        "candidates": CANDIDATES,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cuda",
    }
    gate_fraction(
        f"gpu/crop_generated_weights/{label}_bandwidth",
        found.ours.best,
        first.traffic(),
        "copy",
        **facts,
    )
    gate(
        f"gpu/crop_generated_weights/{label}",
        found,
        rival="whole weights, one by one, cropped",
        **facts,
    )
