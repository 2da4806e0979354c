"""A search on two ranks against one process: what of twice the time is of use.

Processor time, so that neighbours on the machine change little: of a phase that of the rank that
takes longest, as if each had a core to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from _interleave import Comparison, Side
from _ranks import WORLD, on_ranks, shared_phases, trained_phases

CASES = {"trained": trained_phases, "shared": shared_phases}


@pytest.mark.parametrize("name", CASES)
def bench_search_over_ranks(name: str, benchmark: Any, gate: Callable[..., None]) -> None:
    """The bound is on the efficiency: one process's time over two ranks', each counted whole."""
    work, rounds = CASES[name], 1
    work()
    alone, together, overheads = [], [], []
    for _ in range(rounds):
        one, ranks = work(), on_ranks(work)
        alone.append(sum(one.whole))
        phases = zip(*(rank.whole for rank in ranks), strict=True)
        together.append(WORLD * sum(max(phase) for phase in phases))
        spent = sum(sum(rank.whole) for rank in ranks)
        overheads.append(1 - sum(sum(rank.useful) for rank in ranks) / spent)
    found = Comparison(Side(tuple(together)), Side(tuple(alone)))
    gate(
        f"training/ranks/{name}",
        found,
        rival="one process",
        ranks=WORLD,
        scheduling=round(min(overheads), 5),
    )
    assert min(overheads) < 0.02
