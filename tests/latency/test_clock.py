"""The real clock, once: that it runs what it is given, and in the mode it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import fastprune as fp
from fastprune import models
from fastprune.errors import ConfigError
from fastprune.latency import MODES, DeviceClock, LatencyOptions, Mode, mode_refusal
from fastprune.latency import clock as clocks
from fastprune.latency.calls import Call, calls_of
from fastprune.latency.table import points_of
from fastprune.testing.methods import TinyResidual

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", ["eager", "channels_last+bf16"])
def test_layers_and_networks_are_timed(mode: Any) -> None:
    model = TinyResidual()
    graph = fp.trace(model, torch.zeros(1, 3, 32, 32))
    options = LatencyOptions(batch_size=2, mode=mode)
    clock = DeviceClock(options, CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for call in calls_of(graph, 2):
        points = points_of(call.kind)
        times = clock.layer(call, points)
        assert len(times) == len(points)
        assert all(0 < time < 1000 for time in times)
    found = clock.networks([model, model], [torch.zeros(1, 3, 32, 32)])

    assert len(found) == 2
    assert all(0 < time < 1000 for time in found)
    assert (clock.setting.batch_size, clock.setting.mode, clock.setting.threads) == (2, mode, 1)
    assert clock.setting.torch == torch.__version__
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Seen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[Any, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        strided = x.is_contiguous(memory_format=torch.channels_last)
        SEEN.append((tuple(x.shape), x.dtype, strided))
        return x


SEEN: list[tuple[Any, ...]] = []


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("eager", (torch.float32, False)),
        ("channels_last", (torch.float32, True)),
        ("bf16", (torch.bfloat16, False)),
        ("channels_last+bf16", (torch.bfloat16, True)),
    ],
)
def test_networks_get_images_of_the_mode(mode: Any, expected: Sequence[Any]) -> None:
    SEEN.clear()
    DeviceClock(LatencyOptions(batch_size=3, mode=mode), CPU).networks(
        [Seen()], [torch.zeros(1, 2, 4, 4)]
    )

    assert set(SEEN) == {((3, 2, 4, 4), *expected)}


@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenet_cifar", "densenet40_cifar"])
@pytest.mark.parametrize("mode", ["eager", "channels_last"])
def test_every_call_runs_at_every_point(name: str, mode: Any) -> None:
    options = {"depth": 8} if name == "resnet20_cifar" else {}
    graph = fp.trace(models.build(name, **options), torch.zeros(1, 3, 32, 32))
    kinds: dict[Any, Call] = {}
    for call in calls_of(graph, 2):
        kinds.setdefault(call.kind, call)
    with torch.inference_mode():
        for kind, call in kinds.items():
            points = [points_of(kind)[0], points_of(kind)[-1]]
            for (_, outputs), run in zip(
                points, clocks._runs(call, tuple(points), Mode(mode), CPU), strict=True
            ):
                made = run()
                assert isinstance(made, torch.Tensor)
                assert len(made) == 2
                if kind.op == "conv2d" and kind.outputs:
                    assert made.shape[1] == outputs
                    last = made.is_contiguous(memory_format=torch.channels_last)
                    assert last or made.shape[1] == 1 or mode == "eager"


def test_modes_are_read_from_their_names() -> None:
    assert Mode("eager").dtype == torch.float32
    full = Mode("compiled+channels_last+bf16")
    assert (full.compiled, full.memory_format, full.dtype) == (
        True,
        torch.channels_last,
        torch.bfloat16,
    )
    assert all(Mode(name).name == name for name in MODES)
    with pytest.raises(
        ConfigError, match="unknown mode 'channel_last'; did you mean 'channels_la"
    ):
        Mode("channel_last")


def test_a_mode_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastprune.latency.options.bf16_instructions", lambda: [])

    assert "no bf16 instructions" in str(mode_refusal(Mode("channels_last+bf16"), CPU))
    assert mode_refusal(Mode("channels_last"), CPU) is None
    monkeypatch.setattr("fastprune.latency.options.bf16_instructions", lambda: ["avx512_bf16"])
    assert mode_refusal(Mode("bf16"), CPU) is None
