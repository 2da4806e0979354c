"""Where time goes, and why a network is hardly faster."""

from __future__ import annotations

import pytest
import torch

from fastprune import models
from fastprune.latency import Alignment
from fastprune.latency.profile import CallTime, Profile, hardly_faster, profile, reasons

LIKES_16 = Alignment(8, 16, ())
LIKES_ANY = Alignment(1, 1, ())


def conv(layer: str, inputs: int, outputs: int, ms: float, groups: int = 1) -> CallTime:
    return CallTime("conv2d", layer, inputs, outputs, groups, ms)


def other(op: str, ms: float) -> CallTime:
    return CallTime(op, "", 0, 0, 1, ms)


def test_calls_of_a_network_are_told_with_their_widths() -> None:
    model = models.build("mobilenet_cifar").eval()
    found = profile(model, [torch.zeros(1, 3, 32, 32)], torch.device("cpu"))
    convolutions = [call for call in found.calls if call.op == "conv2d"]

    assert [call.op for call in found.calls].count("batch_norm") == 27
    assert len(convolutions) == 27
    assert (convolutions[0].inputs, convolutions[0].outputs) == (3, 32)
    assert convolutions[1].groups == convolutions[1].inputs == convolutions[1].outputs == 32
    assert all(call.layer for call in convolutions)
    assert found.calls[-1].layer == "linear"
    assert found.whole > 0
    assert 0 < found.least < found.whole


def test_layers_off_the_blocks_of_a_device() -> None:
    calls = (conv("a", 16, 37, 4.0), conv("b", 37, 32, 3.0), conv("c", 32, 32, 2.0))
    found = reasons(Profile(calls, 9.5, 0.01), {}, LIKES_16)

    assert len(found) == 1
    assert found[0].startswith(
        "73% of the time goes to layers whose widths are no multiples of 16"
    )
    assert "a 16 to 37, b 37 to 32" in found[0]
    assert "prune.round_to=auto (here 8)" in found[0]
    assert "no one reason" in reasons(Profile(calls, 9.5, 0.01), {}, LIKES_ANY)[0]


def test_calls_that_move_memory() -> None:
    calls = (
        conv("a", 16, 16, 2.0),
        conv("b", 16, 16, 3.0, groups=16),
        other("batch_norm", 4.0),
        other("relu", 1.0),
    )
    found = reasons(Profile(calls, 10.0, 0.0), {}, LIKES_16)

    assert len(found) == 1
    assert found[0].startswith("80% of the time goes to calls that move memory")
    assert "batch_norm 40%, depthwise conv2d 30%, relu 10%" in found[0]
    assert "prune.budget.latency_ms" in found[0]


def test_a_network_too_small_for_its_overhead() -> None:
    calls = tuple(other("relu", 0.01) for _ in range(100))
    found = reasons(Profile(calls, 2.0, 0.008), {}, LIKES_16)

    assert found[0].startswith("too small for the overhead: 90% of its 2 ms")
    assert "100 calls" in found[0]
    assert "latency.batch_size" in found[0]


def test_layers_of_which_nothing_was_dropped() -> None:
    calls = (conv("stem", 3, 64, 6.0), conv("a", 64, 32, 2.0))
    found = reasons(Profile(calls, 8.0, 0.0), {"stem": (3, 64), "a": (64, 64)}, LIKES_ANY)

    assert found == [
        "75% of the time goes to 1 layers of which nothing was dropped, such as stem; "
        "prune.ranking=layer, prune.ratios or a budget in latency may reach them"
    ]


def test_the_weightiest_reason_is_the_first() -> None:
    calls = (conv("a", 16, 37, 3.0), other("add", 6.0))
    found = reasons(Profile(calls, 9.0, 0.0), {}, LIKES_16)

    assert [reason[:3] for reason in found] == ["67%", "33%"]


@pytest.mark.parametrize(
    ("pruned", "kept", "expected"),
    [(5.0, 0.5, False), (9.0, 0.5, True), (8.7, 0.5, False), (10.0, 1.0, True), (11, 0.1, True)],
)
def test_hardly_faster_is_a_quarter_of_what_the_macs_promise(
    pruned: float, kept: float, expected: bool
) -> None:
    assert hardly_faster(10.0, pruned, kept) == expected
