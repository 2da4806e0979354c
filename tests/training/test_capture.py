from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastprune.errors import TrainingError
from fastprune.training._capture import Captured, CudaGraphs

MakeGraphs = Callable[..., Any]


def captured(
    work: Callable[..., tuple[Tensor, ...]], graphs: Any, *, asked: bool = False
) -> Captured:
    return Captured(work, images=4, graphs=graphs, asked=asked, field="finetune.capture")


def test_three_warm_ups_one_recording_then_replays(fake_graphs: MakeGraphs) -> None:
    graphs = fake_graphs()
    calls = []

    def work(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        calls.append(x.data_ptr())
        return x + y, x.sum()

    run = captured(work, graphs)
    given = [(torch.randn(4, 3), torch.randn(4, 3)) for _ in range(7)]
    results = [run(*inputs) for inputs in given]
    for (x, y), (total, summed) in zip(given, results, strict=True):
        assert torch.equal(total, x + y)
        assert torch.equal(summed, x.sum())
    assert graphs.log == ["aside"] * 3 + ["record"] + ["replay"] * 4
    # The graph reads one place, which is no batch's own.
    assert len(set(calls[3:])) == 1
    assert calls[3] not in {x.data_ptr() for x, _ in given}
    assert run.refusal is None


def test_batches_of_another_size_run_uncaptured_and_warm_nothing_up(
    fake_graphs: MakeGraphs,
) -> None:
    graphs = fake_graphs()
    run = captured(lambda x: (2 * x,), graphs)
    for size in (2, 4, 2, 4, 4, 2, 4, 3, 4):
        x = torch.randn(size, 3)
        assert torch.equal(run(x)[0], 2 * x)
    assert graphs.log == ["aside"] * 3 + ["record"] + ["replay"] * 2
    wide = torch.randn(4, 5)
    assert torch.equal(run(wide)[0], 2 * wide)
    assert graphs.log[-1] == "replay"
    assert len(graphs.log) == 6


def test_memory_formats_are_those_of_the_batches(fake_graphs: MakeGraphs) -> None:
    seen = []

    def work(x: Tensor) -> tuple[Tensor, ...]:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return (x.relu(),)

    run = captured(work, fake_graphs())
    for _ in range(5):
        run(torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    assert all(seen)


def test_what_waits_for_the_device_is_not_captured(fake_graphs: MakeGraphs) -> None:
    graphs = fake_graphs()
    graphs.waits = ["network.py:12"]
    run = captured(lambda x: (x,), graphs)
    for _ in range(5):
        run(torch.randn(4))
    assert run.refusal == "it waits for the GPU in every batch, at network.py:12"
    assert graphs.log == ["aside"] * 3


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_what_draws_on_the_host_is_not_captured(
    fake_graphs: MakeGraphs, draw: Callable[[], object]
) -> None:
    def work(x: Tensor) -> tuple[Tensor, ...]:
        draw()
        return (x,)

    run = captured(work, fake_graphs())
    for _ in range(4):
        run(torch.zeros(4))
    assert run.refusal is not None
    assert "random numbers on the host" in run.refusal


def test_a_failed_recording_is_told_of_and_the_batch_computed(fake_graphs: MakeGraphs) -> None:
    graphs = fake_graphs()
    graphs.fails = RuntimeError("CUDA error: operation not permitted\nCompile with ...")
    run = captured(lambda x: (x + 1,), graphs)
    for _ in range(5):
        assert torch.equal(run(torch.zeros(4))[0], torch.ones(4))
    assert run.refusal == "recording failed: CUDA error: operation not permitted"
    asked = captured(lambda x: (x,), graphs, asked=True)
    for _ in range(3):
        asked(torch.zeros(4))
    with pytest.raises(TrainingError, match=r"finetune\.capture: recording failed: CUDA error"):
        asked(torch.zeros(4))


def test_large_batches_are_captured_only_when_asked(fake_graphs: MakeGraphs) -> None:
    x = torch.zeros(4, 2**20 + 1)
    unasked = captured(lambda x: (x[:1, :1].clone(),), fake_graphs())
    unasked(x)
    assert unasked.refusal == "batches of 4,194,308 numbers keep the GPU busy by themselves"
    asked = captured(lambda x: (x[:1, :1].clone(),), fake_graphs(), asked=True)
    for _ in range(5):
        asked(x)
    assert asked.refusal is None


def test_forgotten_recordings_are_made_anew(fake_graphs: MakeGraphs) -> None:
    graphs = fake_graphs()
    weight = nn.Parameter(torch.ones(3))
    held = [weight]
    run = captured(lambda x: ((x * held[0]).detach(),), graphs)
    for _ in range(4):
        run(torch.ones(4, 3))
    held[0] = nn.Parameter(torch.full((3,), 2.0))
    run.forget()
    for _ in range(5):
        assert torch.equal(run(torch.ones(4, 3))[0], torch.full((4, 3), 2.0))
    assert graphs.log.count("record") == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGpu:
    def test_waiting_is_noticed_and_dropout_still_works(self) -> None:
        device = torch.device("cuda")
        run = captured(lambda x: (x * x.sum().item(),), CudaGraphs(device))
        for _ in range(5):
            run(torch.ones(4, device=device))
        assert run.refusal is not None
        assert "waits for the GPU" in run.refusal

    def test_a_recording_that_breaks_off_leaves_the_generator_usable(self) -> None:
        device = torch.device("cuda")
        graphs = CudaGraphs(device)
        x = torch.ones(1000, device=device)

        def work() -> tuple[Tensor, ...]:
            return (nn.functional.dropout(x) * x.sum().item(),)

        with pytest.raises(RuntimeError):
            graphs.record(work)
        assert 300 < (nn.functional.dropout(x) > 0).sum().item() < 700
        outputs, replay = graphs.record(lambda: (nn.functional.dropout(x),))
        replay()
        first = outputs[0].clone()
        replay()
        assert not torch.equal(first, outputs[0])
