"""The GPU timing of benchmarks/_gpu.py with a clock of its own: no device is needed."""

from __future__ import annotations

import _gpu
import pytest
import torch

NOW = 0.0


class Event:
    """CUDA's event on a clock that calls move."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = NOW

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.at - self.at)


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(_gpu, "RAMP", 0.0)
    monkeypatch.setattr(_gpu, "_spin_rate", lambda: 1e9)
    monkeypatch.setattr(_gpu, "_l2_bytes", lambda: 1000)


def spend(seconds: float) -> None:
    global NOW
    NOW += seconds


@pytest.mark.parametrize(("nbytes", "count"), [(300, 7), (2000, 2), (10**9, 2)])
def test_inputs_overflow_the_cache_twice(nbytes: int, count: int) -> None:
    inputs = _gpu.rotated(lambda: torch.randn(4), nbytes)

    assert len(inputs) == count
    assert not torch.equal(inputs[0], inputs[1])


def test_inputs_need_a_size() -> None:
    with pytest.raises(ValueError, match="got 0"):
        _gpu.rotated(lambda: None, 0)


@pytest.mark.parametrize("queued", [True, False])
def test_a_time_is_of_one_call_and_both_sides_go_on_through_the_inputs(queued: bool) -> None:
    seen: list[tuple[str, int]] = []

    def side(name: str, seconds: float) -> object:
        def call(each: int) -> None:
            seen.append((name, each))
            spend(seconds)

        return call

    found = _gpu.compare_gpu(
        side("ours", 1e-6), side("rival", 3e-6), range(7), rounds=4, queued=queued
    )

    assert found.ours.times == pytest.approx([1e-6] * 4)
    assert found.ratio == pytest.approx(3)
    places = [each for _, each in seen]
    assert places == [i % 7 for i in range(len(places))]


@pytest.mark.parametrize(
    ("issue", "device", "calls"),
    [(5e-6, 6e-6, 20), (5e-4, 6e-4, 3), (5e-6, 4e-3, 2), (5e-2, 1e-1, 1)],
)
def test_a_round_neither_fills_the_queue_nor_lasts(
    issue: float, device: float, calls: int
) -> None:
    assert _gpu.calls_of_a_round(issue, device) == calls
