"""Batch norm with merged statistics and ReLU, against ``F.batch_norm`` in training mode and ReLU.

The rival's ReLU works in place, as in torchvision's networks; not in place it is slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _gpu import compare_gpu, rotated
from _interleave import compare
from torch import Tensor

from fastprune.ops import Moments, batch_norm_recalibrate

LAYERS = {"56x56": (64, 56), "14x14": (256, 14), "7x7": (512, 7)}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Layer:
    """A batch norm of ResNet-50 with random weights, and what both sides do with an input."""

    def __init__(self, channels: int, device: str = "cpu") -> None:
        self.weight, self.bias = torch.rand(2, channels, device=device).unbind()
        self.mean, self.variance = torch.zeros(2, channels, device=device).unbind()
        self.moments = Moments.zeros(channels, device=device)

    def ours(self, x: Tensor) -> Tensor:
        return batch_norm_recalibrate(x, self.moments, self.weight, self.bias, relu=True)

    def rival(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, training=True)
        return F.relu(y, inplace=True)

    def check(self, x: Tensor) -> None:
        """Ours is as near to float64 as the rival, times four, or to a rounding step."""
        shape = [1, -1, 1, 1]
        variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        scale = self.weight.double() / (variance + 1e-5).sqrt()
        exact = (x.double() - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        exact.relu_()
        ours, theirs = self.ours(x), self.rival(x)
        step = torch.finfo(x.dtype).eps * float(exact.abs().max())
        error, allowed = (float((y - exact).abs().max()) for y in (ours, theirs))
        assert error <= 4 * allowed + step, f"error {error:.3g}, plain torch's {allowed:.3g}"
        assert ours.stride() == x.stride()


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_and_relu(
    name: str, format: str, benchmark: Any, gate: Callable[..., None]
) -> None:
    channels, side = LAYERS[name]
    x = torch.randn(16, channels, side, side).contiguous(memory_format=FORMATS[format])
    layer = Layer(channels)
    layer.check(x)
    found = compare(
        benchmark,
        lambda: layer.ours(x),
        lambda: layer.rival(x),
        rounds=15,
        calls=12_000_000 // x.numel(),
    )
    gate(
        f"ops/batch_norm_recalibrate/{name}_{format}",
        found,
        rival="F.batch_norm + F.relu",
        # Statistics, then the normalisation, which reads again and writes.
        bytes=3 * x.nbytes,
        shape=list(x.shape),
        dtype="float32",
        device="cpu",
    )


@pytest.mark.gpu
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["56x56", "7x7"])
def test_batch_norm_and_relu_on_a_gpu(
    name: str,
    format: str,
    dtype: torch.dtype,
    gpu: torch.device,
    gate: Callable[..., None],
) -> None:
    channels, side = LAYERS[name]

    def make() -> Tensor:
        x = torch.randn(256, channels, side, side, device=gpu, dtype=dtype)
        return x.contiguous(memory_format=FORMATS[format])

    kind = str(dtype).removeprefix("torch.")
    layer = Layer(channels, "cuda")
    nbytes = 2 * make().nbytes
    inputs = rotated(make, nbytes)
    layer.check(inputs[0])
    found = compare_gpu(layer.ours, layer.rival, inputs)
    gate(
        f"gpu/batch_norm_recalibrate/{name}_{format}_{kind}",
        found,
        rival="F.batch_norm + F.relu",
        bytes=nbytes // 2 * 3,
        shape=list(inputs[0].shape),
        dtype=kind,
        device="cuda",
    )
