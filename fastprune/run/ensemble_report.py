"""What a run of several joined networks found, as plain data, tables and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fastprune.config import RunConfig
from fastprune.data import DataInfo
from fastprune.run.directory import StageRecord
from fastprune.run.plots import COLORS, new_figure, write_figure
from fastprune.run.report import left_out, row_console, share, steady_warning

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "build_ensemble_report",
    "draw_fused",
    "draw_times",
    "part_of",
    "plot_devices",
    "print_ensemble_report",
]

_SHOWN = 12
"""Classes of an expert that a table names."""


def build_ensemble_report(
    *,
    config: RunConfig,
    records: Mapping[str, StageRecord],
    info: DataInfo,
    pipelines: Mapping[str, str],
    normalization_source: str,
    command: str,
    directory: Path,
) -> dict[str, Any]:
    """The content of report.json; all but latency, seconds, kills and warnings repeats exactly."""
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
        "model": config.model.name,
        "dataset": config.data.name,
        "pipelines": dict(pipelines),
        "method": config.method.name,
        "seed": config.seed,
        "normalization": {
            "mean": list(info.mean),
            "std": list(info.std),
            "source": normalization_source,
        },
        "classes": list(info.classes),
        "accuracy": {"baseline": records["baseline"].results["metrics"]},
        "cost": {"unpruned": records["baseline"].results["cost"]},
        "groups": groups,
        "experts": experts,
        "fusions": fusions,
        "warnings": [*_rough(fusions), *left_out(records)],
        "seconds": {name: record.seconds for name, record in records.items()},
        "kills": {name: record.kills for name, record in records.items() if record.kills},
        "command": command or f"fastprune run {directory}/config.yaml --out {directory}",
        "directory": str(directory),
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
    title = f"{report['model']} on {report['dataset']}, {report['method']}, seed {report['seed']}"
    console.print(title, style="bold")
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
    seconds = ", ".join(
        f"{name} {'at least ' if name in report['kills'] else ''}{took:.1f} s"
        for name, took in report["seconds"].items()
    )
    console.print(f"time: {seconds}", soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    console.print(f"saved: {report['directory']}; again: {report['command']}", soft_wrap=True)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot_devices(path: Path, report: Mapping[str, Any]) -> None:
    """Accuracy of the fused networks over the number of devices, and milliseconds an image.

    Args:
        path: of the PNG file.
        report: as `build_ensemble_report` makes it.
    """
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    draw_fused(left, report["fusions"], report["accuracy"]["baseline"]["top1"])
    draw_times(right, report["fusions"])
    for axes in (left, right):
        axes.legend(fontsize=8)
    write_figure(path, figure)


def draw_fused(axes: Axes, fusions: Sequence[Mapping[str, Any]], baseline: float) -> None:
    """Accuracy of the fused networks over the number of devices, beside the baseline's."""
    found = [fusion["test"]["top1"] for fusion in fusions]
    _over_devices(axes, fusions)
    axes.plot(_counts(fusions), found, color=COLORS[0], label="fused", **_MARKS)
    axes.axhline(baseline, color="0.3", linestyle="dashed", label="baseline")
    axes.set_ylabel("test top-1, %")


def draw_times(axes: Axes, fusions: Sequence[Mapping[str, Any]]) -> None:
    """Milliseconds an image over the number of devices, of the parts of split inference."""
    _over_devices(axes, fusions)
    for number, part in enumerate(("unpruned", "slowest expert", "slowest + head", "whole")):
        times = [part_of(fusion["latency"], part)["image_ms"] for fusion in fusions]
        axes.plot(_counts(fusions), times, color=COLORS[number], label=part, **_MARKS)
    batch = part_of(fusions[0]["latency"], "unpruned")["batch"]
    axes.set_ylabel(f"milliseconds an image, {batch} at a time")
    axes.set_ylim(bottom=0)


_MARKS: dict[str, Any] = {"marker": "o", "linewidth": 1.2}


def _counts(fusions: Sequence[Mapping[str, Any]]) -> list[int]:
    return [fusion["devices"] for fusion in fusions]


def _over_devices(axes: Axes, fusions: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xlabel("devices")
    axes.set_xticks(_counts(fusions))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
