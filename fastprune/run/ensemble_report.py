"""What a run of several joined networks found, as plain data and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fastprune.run.report import steady_warning
from fastprune.run.stages import StageRecord
from fastprune.run.tables import print_ending, print_title, row_console, share

__all__ = ["build_ensemble_report", "part_of", "print_ensemble_report"]

_SHOWN = 12
"""Classes of an expert that a table names."""


def build_ensemble_report(
    facts: Mapping[str, Any], records: Mapping[str, StageRecord], classes: Sequence[str]
) -> dict[str, Any]:
    """The content of report.json; all but latency, seconds, kills and warnings repeats exactly.

    Args:
        facts: that every report has, `StagedRun.facts`.
        records: of the run's stages.
        classes: names of all of them.
    """
    groups, fused = records["group"].results["groups"], records["fuse"].results["fusions"]
    measured = records["infer"].results["inference"]
    experts = records["experts"].results["experts"]
    runs = {tuple(expert["classes"]): expert["run"] for expert in experts}
    fusions = [
        {
            "devices": int(count),
            "experts": [runs[tuple(classes)] for classes in groups[count]],
            **found,
            "split": {name: measured[count][name] for name in ("test", "equal")},
            "latency": measured[count]["latency"],
        }
        for count, found in fused.items()
    ]
    return {
        **facts,
        "classes": list(classes),
        "accuracy": {"baseline": records["baseline"].results["metrics"]},
        "cost": {"unpruned": records["baseline"].results["cost"]},
        "groups": groups,
        "experts": experts,
        "fusions": fusions,
        "warnings": [*_rough(fusions), *facts["warnings"]],
    }


def part_of(latency: Sequence[Mapping[str, Any]], part: str) -> Mapping[str, Any]:
    """A part's row at the fewest images at a time."""
    rows = [row for row in latency if row["part"] == part]
    return min(rows, key=lambda row: int(row["batch"]))


def _rough(fusions: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = ("slowest + head", "unpruned")
    rows = [part_of(fusion["latency"], part) for fusion in fusions for part in parts]
    return steady_warning(
        max((row["high_ms"] - row["low_ms"]) / row["median_ms"] for row in rows),
        "method.inference.repeats",
    )


def print_ensemble_report(report: Mapping[str, Any]) -> None:
    """The report as tables on standard output."""
    console = row_console()
    print_title(console, report)
    full, before = report["cost"]["unpruned"], report["accuracy"]["baseline"]
    console.print(
        f"baseline: top-1 {before['top1']:.2f} %, {full['macs']:,} MACs, {full['params']:,} "
        f"params, {full['size_mb']:.2f} MB"
    )
    names = report["classes"]
    table = Table("expert", "params", "kept", "MACs", "kept", "own top-1, %", "before")
    for column in table.columns[1:]:
        column.justify = "right"
    for expert in report["experts"]:
        labels, cost = expert["classes"], expert["cost"]
        shown = ", ".join(names[label] for label in labels[:_SHOWN])
        more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
        table.add_row(
            shown + more,
            f"{cost['params']:,}",
            share(cost["params"], full["params"]),
            f"{cost['macs']:,}",
            share(cost["macs"], full["macs"]),
            _percent(expert["focus_top1"]),
            _percent(expert["focus_top1_before"]),
        )
    console.print(table)
    table = Table(
        "devices", "fused top-1, %", "top-5", "head, MB", "slowest + head, ms", "unpruned"
    )
    for column in table.columns:
        column.justify = "right"
    for fusion in report["fusions"]:
        split, whole = (part_of(fusion["latency"], p) for p in ("slowest + head", "unpruned"))
        table.add_row(
            str(fusion["devices"]),
            f"{fusion['test']['top1']:.2f}",
            f"{fusion['test']['top5']:.2f}",
            f"{fusion['head']['size_mb']:.2f}",
            f"{split['median_ms']:.2f} (batch {split['batch']})",
            f"{whole['median_ms']:.2f}",
        )
    console.print(table)
    for fusion in report["fusions"]:
        if not fusion["split"]["equal"]:
            console.print(
                f"split inference on {fusion['devices']} devices: top-1 "
                f"{fusion['split']['test']['top1']:.4f} %, in one process "
                f"{fusion['test']['top1']:.4f} %: other kinds of machines round otherwise"
            )
    print_ending(console, report)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
