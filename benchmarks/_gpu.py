"""A/B timing on a GPU: CUDA events, inputs past the L2, bandwidths that times are held to."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from _interleave import Comparison, Side

__all__ = ["bandwidth", "compare_gpu", "device_facts", "rotated"]

T = TypeVar("T")

# H200's and H100's; older torch does not tell the size.
L2_BYTES = 60 * 1024**2

# Of one side in one round. Issuing more than a millisecond or two of launches ahead would fill the
# queue of about a thousand that the driver keeps, and then the host's own pace is timed again.
MOST_CALLS, MOST_ISSUE, MOST_DEVICE = 20, 1.5e-3, 10e-3

RAMP = 0.3
"""Seconds of work before any time is taken: an idle GPU is at a sixth of its clock."""


def rotated(make: Callable[[], T], nbytes: int) -> list[T]:
    """Distinct inputs that together overflow the L2 twice, so that none of them is found in it.

    Args:
        make: makes one input, of random data.
        nbytes: that a call with one of them reads and writes.
    """
    if nbytes <= 0:
        raise ValueError(f"nbytes: expected at least 1, got {nbytes}")
    return [make() for _ in range(max(2, math.ceil(2 * _l2_bytes() / nbytes)))]


def compare_gpu(
    ours: Callable[[T], object],
    rival: Callable[[T], object],
    inputs: Sequence[T],
    *,
    rounds: int = 30,
    queued: bool = True,
) -> Comparison:
    """Seconds of one call of both sides by CUDA events, the rounds of both in turn.

    One pair of events encloses up to 20 calls, and the two sides go through the inputs with one
    common cursor, so that neither finds in the L2 what the other has just read.

    Args:
        ours: called with one input.
        rival: likewise.
        inputs: from `rotated`.
        rounds: of each side.
        queued: the launches are issued while the device is kept waiting, so that the times are of
            the device alone. False times what a training loop sees, the host's work included.
    """
    ours_timed, rival_timed = _Timed(ours, queued), _Timed(rival, queued)
    cursor = _Cursor(inputs)
    for side in (ours_timed, rival_timed):
        side.prepare(cursor)
    _ramp(ours_timed, rival_timed, cursor)
    mine: list[float] = []
    theirs: list[float] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            mine.append(ours_timed.round(cursor))
            theirs.append(rival_timed.round(cursor))
    finally:
        gc.enable()
    return Comparison(Side(tuple(mine)), Side(tuple(theirs)))


def bandwidth(kind: str) -> float:
    """Bytes a second that this device moves, measured once in this process.

    Args:
        kind: ``"copy"``: a large device-to-device copy, bytes read and bytes written; ``"read"``:
            a reduction of a large tensor, the fastest of torch's and a plain kernel.
    """
    return _bandwidth(kind, torch.cuda.current_device())


@functools.cache
def _bandwidth(kind: str, device: int) -> float:
    free, _ = torch.cuda.mem_get_info()
    count = min(2 * 1024**3, free // 8) // 4
    source = torch.randn(count, device="cuda")
    if kind == "copy":
        target = torch.empty_like(source)
        moved, ways = 8 * count, [lambda: target.copy_(source)]
    elif kind == "read":
        moved, ways = 4 * count, [source.sum, *_read_kernels(source)]
    else:
        raise ValueError(f"kind: expected 'copy' or 'read', got {kind!r}")
    best = math.inf
    for way in ways:
        timed, cursor = _Timed(lambda _, way=way: way(), queued=True), _Cursor([None])
        timed.prepare(cursor)
        _ramp(timed, timed, cursor)
        best = min(best, *(timed.round(cursor) for _ in range(10)))
    return moved / best


def _read_kernels(source: torch.Tensor) -> list[Callable[[], object]]:
    try:
        from _gpu_read import read
    except ImportError:
        # No triton: torch's reduction alone stands for reading.
        return []
    return [lambda: read(source)]


def device_facts() -> dict[str, Any]:
    """The device that GPU times are of."""
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": facts.name,
        "capability": f"sm_{facts.major}{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "l2_mb": round(_l2_bytes() / 2**20, 1),
        "cuda": torch.version.cuda,
    }


@dataclass(slots=True)
class _Cursor:
    """Goes round the inputs, the same for both sides."""

    inputs: Sequence[Any]
    at: int = 0

    def next(self) -> Any:
        found = self.inputs[self.at % len(self.inputs)]
        self.at += 1
        return found


@dataclass(slots=True)
class _Timed:
    """One side: how many calls a round takes, and how long the device must wait for them."""

    call: Callable[[Any], object]
    queued: bool
    calls: int = 1
    wait: int = 0

    def prepare(self, cursor: _Cursor) -> None:
        """Compiles and loads what the first calls need, then sizes a round."""
        for _ in range(3):
            self.call(cursor.next())
        torch.cuda.synchronize()
        issue, device = math.inf, math.inf
        for _ in range(3):
            start = time.perf_counter()
            self.call(cursor.next())
            issue = min(issue, time.perf_counter() - start)
            torch.cuda.synchronize()
            device = min(device, time.perf_counter() - start)
        self.calls = calls_of_a_round(issue, device)
        # A spin of half as long again as the host needs, and 50 µs for the events.
        self.wait = round((1.5 * issue * self.calls + 50e-6) * _spin_rate())

    def round(self, cursor: _Cursor) -> float:
        """Seconds of one call."""
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        inputs = [cursor.next() for _ in range(self.calls)]
        call = self.call
        torch.cuda.synchronize()
        if self.queued:
            torch.cuda._sleep(self.wait)
        start.record()
        for each in inputs:
            call(each)
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end) / self.calls


def calls_of_a_round(issue: float, device: float) -> int:
    """How many calls one pair of events encloses.

    Args:
        issue: seconds until the host returns from a call.
        device: seconds until its work is done.
    """
    return max(1, min(MOST_CALLS, int(MOST_ISSUE / issue), int(MOST_DEVICE / device)))


def _ramp(ours: _Timed, rival: _Timed, cursor: _Cursor) -> None:
    """Both sides in turn until the clocks are up."""
    start = time.perf_counter()
    while time.perf_counter() - start < RAMP:
        ours.round(cursor)
        rival.round(cursor)


@functools.cache
def _spin_rate() -> float:
    """Cycles a second of ``torch.cuda._sleep``."""
    cycles = 20_000_000
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    # The first, with clocks that are not up yet, is not counted.
    for _ in range(3):
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
    return cycles / (1e-3 * start.elapsed_time(end))


def _l2_bytes() -> int:
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(getattr(facts, "L2_cache_size", 0) or L2_BYTES)
