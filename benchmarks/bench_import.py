"""Time of `import fastprune`, against `import torch`, each in a fresh Python."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from _interleave import compare


def children_time() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fresh(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


@pytest.mark.benchmark(timer=children_time)
def bench_import(benchmark: Any, gate: Callable[..., None]) -> None:
    found = compare(
        benchmark,
        lambda: fresh("fastprune"),
        lambda: fresh("torch"),
        rounds=7,
        timer=children_time,
    )
    gate("import", found, rival="import torch", at_most=True)
