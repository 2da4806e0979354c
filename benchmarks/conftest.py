"""Every benchmark: one thread, gates against benchmarks/bounds.json, records on demand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from _facts import bound, machine
from _gpu import bandwidth
from _interleave import Comparison, Side

RECORDS = Path(__file__).with_name("records")
RESULTS = pytest.StashKey[list[dict[str, Any]]]()

# Seconds that GPU rounds took, told to pytest-benchmark as if its own timer had seen them.
_device_seconds = 0.0


def device_clock() -> float:
    return _device_seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also the rivals that need minutes for one round"
    )
    parser.addoption(
        "--record", action="store_true", help="write what was measured to benchmarks/records/"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    config.addinivalue_line("markers", "slow: a rival of minutes; runs with --slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="its rival needs minutes; run it with --slow")
    gpu = pytest.mark.skip(reason="needs a CUDA device, torch sees none here")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(slow)
        if item.get_closest_marker("gpu") or "gpu" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=device_clock), append=False)
            if not torch.cuda.is_available():
                item.add_marker(gpu)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """The device of a benchmark that is marked ``gpu``; its memory is given back afterwards.

    Without CUDA the benchmark is skipped before this runs.
    """
    yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@pytest.fixture
def gate(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """``gate(name, comparison, **facts)``: keep a measurement, and hold its ratio to its bound.

    The ratio says how many times faster ours is; with ``at_most`` it is ours over the other's, and
    shall stay small. The comparison is of `_interleave.compare` or `_gpu.compare_gpu`.
    """

    def hold(
        name: str, found: Comparison, *, rival: str, at_most: bool = False, **facts: Any
    ) -> None:
        ratio = 1 / found.ratio if at_most else found.ratio
        result = {
            "name": name,
            "ratio": round(ratio, 4),
            "bound": bound(name),
            "ours": found.ours.summary(),
            "rival": {"what": rival, **found.rival.summary()},
            **facts,
        }
        _replay(benchmark, found.ours)
        _keep(request, benchmark, result, ratio, at_most)

    return hold


@pytest.fixture
def gate_fraction(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """``gate_fraction(name, seconds, nbytes, kind, **facts)``: the same for bytes a second.

    What is held is the fraction of the device's bandwidth of that kind, ``"copy"`` or ``"read"``,
    measured in this run.
    """

    def hold(name: str, seconds: float, nbytes: int, kind: str, **facts: Any) -> None:
        most = bandwidth(kind)
        fraction = nbytes / seconds / most
        result = {
            "name": name,
            "fraction": round(fraction, 4),
            "of": kind,
            "bound": bound(name),
            "ours": {"min_ms": round(1e3 * seconds, 4)},
            "bytes": nbytes,
            "bandwidth_gb_s": round(most / 1e9, 1),
            **facts,
        }
        _replay(benchmark, Side((seconds,)))
        _keep(request, benchmark, result, fraction, False)

    return hold


def _replay(benchmark: Any, ours: Side) -> None:
    """Gives pytest-benchmark the rounds of a comparison that it did not time itself."""
    if benchmark.stats is not None or benchmark.disabled:
        return
    times = iter(ours.times)

    def advance() -> None:
        global _device_seconds
        _device_seconds += next(times)

    benchmark.pedantic(advance, rounds=len(ours.times))


def _keep(
    request: pytest.FixtureRequest,
    benchmark: Any,
    result: dict[str, Any],
    value: float,
    at_most: bool,
) -> None:
    limit = result["bound"]
    passed = value <= limit if at_most else value >= limit
    result |= {"passed": passed, "machine": machine()}
    request.config.stash[RESULTS].append(result)
    # The rounds in pytest-benchmark's own table are of a test's first gate, and so are the facts.
    if benchmark.extra_info:
        benchmark.extra_info.setdefault("more", []).append(result)
    else:
        benchmark.extra_info.update(result)
    assert passed, f"{result['name']}: {value:.3g}, {'at most' if at_most else 'at least'} {limit}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    terminalreporter.section("against the rival, interleaved: CPU time, or the GPU's by events")
    width = max(28, *(len(result["name"]) for result in results))
    for result in results:
        terminalreporter.write_line(
            f"{result['name']:<{width}} {_told(result)} (bound {result['bound']})"
            + ("" if result["passed"] else "  FAILED")
        )


def _told(result: dict[str, Any]) -> str:
    ours = result["ours"]
    digits = 4 if result["name"].startswith("gpu/") else 2
    if "fraction" in result:
        return (
            f"ours {ours['min_ms']:>10.{digits}f} ms   {result['bytes'] / 1e6:,.1f} MB, "
            f"{result['of']} at {result['bandwidth_gb_s']:,.0f} GB/s   "
            f"fraction {result['fraction']:.3f}"
        )
    rival = result["rival"]
    return (
        f"ours {ours['min_ms']:>10.{digits}f} ms (n={ours['n']})   "
        f"{rival['what']} {rival['min_ms']:>11.{digits}f} ms (n={rival['n']})   "
        f"ratio {result['ratio']:.2f}"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if not config.getoption("--record"):
        return
    RECORDS.mkdir(exist_ok=True)
    # A time on a red gate is no result.
    for result in (r for r in config.stash[RESULTS] if r["passed"]):
        content = {
            **{key: value for key, value in result.items() if key != "passed"},
            "command": " ".join(["pytest", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).date().isoformat(),
        }
        path = RECORDS / f"{result['name'].replace('/', '_')}.json"
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
