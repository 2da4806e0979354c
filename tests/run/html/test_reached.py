"""How figures are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastprune.run.html.blocks import Table
from fastprune.run.html.content import read_run
from fastprune.run.html.figures import shortened
from fastprune.run.html.reached import amount, part_of_whole, reached


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (32_936, "32.9 k"),
        (4_859_716, "4.86 M"),
        (125_491_000, "125 M"),
        (999_999, "1000 k"),
        (4_089_184_256, "4.09 G"),
        (2.5e13, "25.0 T"),
    ],
)
def test_counts_are_read_in_three_figures(value: float, expected: str) -> None:
    assert amount(value) == expected


def test_a_latency_is_met_as_nearly_as_it_can_be_measured(finished: Path) -> None:
    run = read_run(finished / "gradual")
    lines = [
        {"metric": "macs", "limit": 1000.5, "reached": 1001},
        {"metric": "params", "limit": 1000.5, "reached": 1000},
        {"metric": "latency_ms", "limit": 5.06, "reached": 5.18},
    ]

    def met(held: bool) -> list[str]:
        found = {"prune": {"budget": lines}, "plan": {"notes": {"latency": {"held": held}}}}
        records = {
            name: replace(record, results=record.results | found.get(name, {}))
            for name, record in run.records.items()
        }
        tables = reached(replace(run, records=records)).blocks
        (table,) = (t for t in tables if isinstance(t, Table) and t.name == "budget")
        return [str(row[3]) for row in table.rows]

    assert met(True) == ["no", "yes", "as nearly as can be measured"]
    assert met(False) == ["no", "yes", "no"]


def test_parts_of_a_whole_and_of_nothing() -> None:
    assert part_of_whole(1, 3) == "33.3%"
    assert part_of_whole(0, 0) == "all"


def test_long_names_keep_both_ends() -> None:
    name = "features.denseblock1.denselayer12.very.long.conv2"

    assert len(shortened(name)) <= 34
    assert shortened(name).startswith("features.")
    assert shortened(name).endswith("long.conv2")
    assert shortened("layer1.0.conv1") == "layer1.0.conv1"
