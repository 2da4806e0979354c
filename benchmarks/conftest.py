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
from _interleave import Comparison

RECORDS = Path(__file__).with_name("records")
RESULTS = pytest.StashKey[list[dict[str, Any]]]()


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
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="its rival needs minutes; run it with --slow")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def gate(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """``gate(name, comparison, **facts)``: keep a measurement, and hold its ratio to its bound.

    The ratio says how many times faster ours is; with ``at_most`` it is ours over the other's, and
    shall stay small.
    """

    def hold(
        name: str, found: Comparison, *, rival: str, at_most: bool = False, **facts: Any
    ) -> None:
        limit = bound(name)
        ratio = 1 / found.ratio if at_most else found.ratio
        passed = ratio <= limit if at_most else ratio >= limit
        result = {
            "name": name,
            "ratio": round(ratio, 4),
            "bound": limit,
            "ours": found.ours.summary(),
            "rival": {"what": rival, **found.rival.summary()},
            **facts,
            "passed": passed,
            "machine": machine(),
        }
        request.config.stash[RESULTS].append(result)
        benchmark.extra_info.update(result)
        assert passed, f"{name}: {ratio:.2f}, {'at most' if at_most else 'at least'} {limit}"

    return hold


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    terminalreporter.section("against the rival, CPU time, interleaved")
    for result in results:
        ours, rival = result["ours"], result["rival"]
        terminalreporter.write_line(
            f"{result['name']:<28} ours {ours['min_ms']:>10.2f} ms (n={ours['n']})   "
            f"{rival['what']} {rival['min_ms']:>11.2f} ms (n={rival['n']})   "
            f"ratio {result['ratio']:.2f} (bound {result['bound']})"
            + ("" if result["passed"] else "  FAILED")
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
