"""A/B timing in one process: shared machines drift up to 20×, interleaved ratios by 1 %."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Comparison", "Side", "compare"]


@dataclass(frozen=True, slots=True)
class Side:
    """CPU seconds of one side, one figure a round."""

    times: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.times)

    def summary(self) -> dict[str, Any]:
        """Milliseconds: least, and the quartiles; and how many rounds."""
        ms = [1e3 * t for t in self.times]
        low, middle, high = statistics.quantiles(ms, n=4) if len(ms) > 1 else ms * 3
        return {
            "min_ms": round(min(ms), 4),
            "q1_ms": round(low, 4),
            "median_ms": round(middle, 4),
            "q3_ms": round(high, 4),
            "n": len(ms),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    ours: Side
    rival: Side

    @property
    def ratio(self) -> float:
        """How many times faster ours is: the rival's least time over ours."""
        return self.rival.best / self.ours.best


def compare(
    benchmark: Any,
    ours: Callable[..., object],
    rival: Callable[..., object],
    *,
    rounds: int,
    rival_rounds: int | None = None,
    rival_setup: Callable[[], Sequence[Any]] = tuple,
    timer: Callable[[], float] = time.process_time,
    calls: int = 1,
) -> Comparison:
    """Time both sides in turn.

    pytest-benchmark keeps our side; the rival runs in its setup, so just before each of our
    rounds. One round of ours goes ahead unmeasured, and one of the rival's unless it runs once.

    Args:
        benchmark: the fixture; its test is marked ``@pytest.mark.benchmark(timer=...)`` with the
            same timer.
        rounds: measured rounds of ours.
        rival_rounds: measured rounds of a slow rival, the first ones; as many as ours if None.
        rival_setup: makes the rival's arguments, unmeasured, for instance a copy it may destroy.
        timer: CPU seconds so far.
        calls: of each side in a round, for work of a few milliseconds: the first call after the
            other side's finds cold caches. Times are of one call; pytest-benchmark's own table
            shows whole rounds.
    """

    def round_of(side: Callable[..., object]) -> Callable[..., object]:
        def repeated(*arguments: Any) -> None:
            for _ in range(calls):
                side(*arguments)

        return side if calls == 1 else repeated

    ours, rival = round_of(ours), round_of(rival)
    times: list[float] = []
    wanted = rounds if rival_rounds is None else rival_rounds
    if wanted > 1:
        rival(*rival_setup())
    ours()

    def rival_first() -> None:
        if len(times) < wanted:
            arguments = rival_setup()
            gc.collect()
            start = timer()
            rival(*arguments)
            times.append(timer() - start)
        gc.collect()

    # Collections of the rounds then look at what they made, not at all of torch.
    gc.collect()
    gc.freeze()
    try:
        benchmark.pedantic(ours, setup=rival_first, rounds=rounds)
    finally:
        gc.unfreeze()
    mine = (t / calls for t in benchmark.stats.stats.data)
    return Comparison(Side(tuple(mine)), Side(tuple(t / calls for t in times)))
