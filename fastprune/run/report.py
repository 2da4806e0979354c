"""What a run found, as plain data and as printed tables."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fastprune.config import RunConfig
from fastprune.data import DataInfo
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.graph.units import map_sizes
from fastprune.latency import Mode, hardly_faster, seconds_of
from fastprune.run.directory import StageRecord
from fastprune.run.timing import why_slow
from fastprune.training.progress import SilentProgress

__all__ = [
    "accuracy_names",
    "build_report",
    "channel_facts",
    "interleaved_latency",
    "left_out",
    "narrowest_groups",
    "print_counts",
    "print_members",
    "print_metrics",
    "print_report",
    "print_stage",
    "row_console",
    "share",
    "steady_warning",
]

_WARM_UP = 3
_STEADY = 0.25
"""Spread from which on a latency is worth little."""

_SHOWN = 8
_WIDEST = 10_000
# What a search found, in the words of its method.
_FOUND = ("code", "gene")


def build_report(
    *,
    config: RunConfig,
    records: Mapping[str, StageRecord],
    graph: ChannelGraph,
    plan: PruningPlan,
    unpruned: nn.Module,
    pruned: nn.Module,
    info: DataInfo,
    pipelines: Mapping[str, str],
    normalization_source: str,
    device: torch.device,
    command: str,
    directory: Path,
    focus: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The content of report.json; all but latency, seconds, kills and warnings repeats exactly."""
    full, small = graph.cost().to_dict(), records["prune"].results["cost"]
    latency = None
    if config.latency.repeats:
        latency = interleaved_latency(
            unpruned,
            pruned,
            (config.latency.batch_size, *info.input_shape),
            device,
            repeats=config.latency.repeats,
            mode=config.latency.mode,
        )
        before, after = latency["unpruned_ms"], latency["pruned_ms"]
        slow = hardly_faster(before, after, small["macs"] / max(full["macs"], 1))
        latency["why"] = (
            why_slow(unpruned, pruned, info.input_shape, config.latency, device, SilentProgress())
            if slow
            else []
        )
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
        "accuracy": {
            "baseline": records["baseline"].results["metrics"],
            "trained_by_method": records["plan"].results["metrics"],
            "pruned": records["prune"].results["metrics"],
            "finetuned": records["finetune"].results["metrics"],
        },
        "cost": {
            "unpruned": full,
            "pruned": small,
            "kept": {name: round(small[name] / full[name], 6) for name in full if full[name]},
        },
        "budget": records["prune"].results["budget"],
        "oracle": records["prune"].results["oracle"],
        "latency": latency,
        "narrowest": narrowest_groups(graph, plan),
        "widths": records["prune"].results["widths"],
        "unprunable": [
            {"name": row.name, "channels": row.channels, "reason": row.reason}
            for row in graph.unprunable
        ],
        "notes": records["plan"].results["notes"],
        "focus": focus,
        "warnings": [*_warnings(latency), *left_out(records)],
        "seconds": {name: record.seconds for name, record in records.items()},
        "kills": {name: record.kills for name, record in records.items() if record.kills},
        "command": command or f"fastprune run {directory}/config.yaml --out {directory}",
        "directory": str(directory),
    }


def interleaved_latency(
    unpruned: nn.Module,
    pruned: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    *,
    repeats: int,
    mode: str = "eager",
) -> dict[str, Any]:
    """Median milliseconds of a forward pass of both networks, taken in turns on this device.

    In turns, since the speed of a shared machine changes from second to second, for both alike.
    On one CPU thread they are its CPU time, see `fastprune.latency.seconds_of`.
    """
    inputs = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)).to(device)
    networks = {"unpruned": unpruned.eval(), "pruned": pruned.eval()}
    if mode != "eager":
        inputs = Mode(mode).images(inputs)
        networks = {k: Mode(mode).prepare(copy.deepcopy(n)) for k, n in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(_WARM_UP + repeats):
            for name, network in networks.items():
                took = seconds_of(lambda network=network: network(inputs), device)  # type: ignore[misc]
                if turn >= _WARM_UP:
                    times[name].append(1e3 * took)
    before, after = (statistics.median(times[name]) for name in networks)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": shape[0],
        "mode": mode,
        "repeats": repeats,
        "unpruned_ms": round(before, 4),
        "pruned_ms": round(after, 4),
        "speedup": round(before / after, 3),
        "spread": round(max(_spread(found) for found in times.values()), 3),
    }


def _spread(times: Sequence[float]) -> float:
    """Distance between the quartiles as a share of the median."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (1.0, 1.0, 1.0)
    return (high - low) / middle


def _warnings(latency: Mapping[str, Any] | None) -> list[str]:
    if latency is None:
        return []
    found = []
    if latency["speedup"] <= 1:
        found.append(
            f"the pruned network is not faster on this device "
            f"({latency['pruned_ms']} ms, unpruned {latency['unpruned_ms']} ms)"
        )
    found += [f"hardly faster: {reason}" for reason in latency["why"]]
    return found + steady_warning(latency["spread"], "latency.repeats")


def steady_warning(spread: float, option: str) -> list[str]:
    """A line where measured times scatter too much; none where they do not.

    Args:
        spread: distance between their quartiles as a share of the median.
        option: of the configuration, that takes more of them.
    """
    if spread <= _STEADY:
        return []
    return [
        f"half of the measured times differ by {spread:.0%} of their median, so the latencies are "
        f"rough: something else is using this machine; {option} takes more of them"
    ]


def left_out(records: Mapping[str, StageRecord]) -> list[str]:
    """A line on image files that could not be read; none where there are none."""
    names = sorted({name for record in records.values() for name in record.bad_images})
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return [f"{len(names)} image files could not be read and were left out: {shown}"]


def narrowest_groups(graph: ChannelGraph, plan: PruningPlan) -> list[dict[str, Any]]:
    """The layer with the smallest share of its channels left, for each size of feature maps."""
    sizes = map_sizes(graph)
    found: dict[str, dict[str, Any]] = {}
    widths = plan.widths()
    for group in graph.groups:
        size = sizes.get(group.name)
        kept = widths.get(group.name, group.channels)
        row = {"maps": size, "group": group.name, "kept": kept, "of": group.channels}
        best = found.get(size) if size is not None else None
        if size is not None and (
            best is None or kept / group.channels < best["kept"] / best["of"]
        ):
            found[size] = row
    return list(found.values())


def channel_facts(graph: ChannelGraph) -> dict[str, Any]:
    """The groups of a network, and what cannot be pruned and why; plain data."""
    return {
        "groups": [
            {"name": group.name, "channels": group.channels, "kind": group.kind}
            for group in graph.groups
        ],
        "unprunable": [
            {"name": row.name, "channels": row.channels, "reason": row.reason}
            for row in graph.unprunable
        ],
    }


def accuracy_names(method: str, notes: Mapping[str, Any]) -> dict[str, str]:
    """What the accuracies of a report are of, in words."""
    fresh = notes.get("weights") == "fresh"
    return {
        "baseline": "baseline",
        "trained_by_method": f"trained by {method}",
        "pruned": "pruned, new weights" if fresh else "pruned",
        "finetuned": "trained" if fresh else "fine-tuned",
    }


def row_console() -> Console:
    """Standard output, where the rows of a table are not broken if they go to a file or a pipe."""
    # No markup: names of files, and commands, have brackets of their own.
    console = Console(highlight=False, markup=False)
    return (
        console if console.is_terminal else Console(highlight=False, markup=False, width=_WIDEST)
    )


def print_report(report: Mapping[str, Any]) -> None:
    """The report as tables on standard output."""
    console = row_console()
    title = f"{report['model']} on {report['dataset']}, {report['method']}, seed {report['seed']}"
    console.print(title, style="bold")
    cost, latency = report["cost"], report["latency"]
    table = Table("", "unpruned", "pruned", "kept")
    for column in table.columns[1:]:
        column.justify = "right"
    for metric in ("macs", "params", "channels"):
        full, small = cost["unpruned"][metric], cost["pruned"][metric]
        table.add_row(
            metric.replace("macs", "MACs"), f"{full:,}", f"{small:,}", share(small, full)
        )
    notes = report["notes"]
    if "remaining_weights" in notes:
        # Of a ticket with single weights at zero the other rows say nothing.
        full, small = notes["prunable_weights"], notes["remaining_weights"]
        table.add_row("prunable weights", f"{full:,}", f"{small:,}", share(small, full))
    full, small = cost["unpruned"]["size_mb"], cost["pruned"]["size_mb"]
    table.add_row("size, MB", f"{full:.2f}", f"{small:.2f}", share(small, full))
    if latency is not None:
        before, after = latency["unpruned_ms"], latency["pruned_ms"]
        label = f"latency, ms (batch {latency['batch_size']}, {latency['device']})"
        table.add_row(label, f"{before:.2f}", f"{after:.2f}", share(after, before))
    console.print(table)
    if "latency" in report["notes"]:
        console.print(_reached(report["notes"]["latency"]), soft_wrap=True)
    names = accuracy_names(report["method"], report["notes"])
    table = Table("accuracy, %", "top-1", "top-5", "loss")
    for column in table.columns[1:]:
        column.justify = "right"
    for key, name in names.items():
        found = report["accuracy"][key]
        if found is not None:
            table.add_row(
                name, f"{found['top1']:.2f}", f"{found['top5']:.2f}", f"{found['loss']:.4f}"
            )
    console.print(table)
    if report["accuracy"]["baseline"] is None and report["accuracy"]["trained_by_method"] is None:
        console.print("the unpruned network was not trained, so its accuracy is not known")
    for name in _FOUND:
        if name in report["notes"]:
            console.print(_numbers(f"{name}:", report["notes"][name]), soft_wrap=True)
    table = Table("feature maps", "narrowest group", "kept")
    for row in report["narrowest"]:
        table.add_row(row["maps"], row["group"], f"{row['kept']} of {row['of']}")
    if report["narrowest"]:
        console.print(table)
    _print_unprunable(console, report["unprunable"])
    seconds = ", ".join(
        f"{name} {'at least ' if name in report['kills'] else ''}{took:.1f} s"
        for name, took in report["seconds"].items()
    )
    console.print(f"time: {seconds}", soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    console.print(f"saved: {report['directory']}; again: {report['command']}", soft_wrap=True)


def _reached(found: Mapping[str, Any]) -> str:
    first = found["first_reached_ms"]
    again = "" if first is None else f", after {first:.4g} of a first plan"
    missed = "" if found["held"] else "; the budget is missed by more than measuring explains"
    return (
        f"budget in latency: {found['reached_ms']:.4g} ms reached, {found['limit_ms']:.4g} asked "
        f"for, {found['predicted_ms']:.4g} predicted{again}, unpruned {found['unpruned_ms']:.4g}; "
        f"batch {found['batch_size']}, {found['threads']} threads, {found['mode']}{missed}"
    )


def print_stage(results: Mapping[str, Any]) -> None:
    """What a run that was to end before its report found last."""
    metrics, cost = results.get("metrics"), results.get("cost")
    parts = [results["stage"]]
    if metrics is not None:
        parts.append(f"top-1 {metrics['top1']:.2f} %, top-5 {metrics['top5']:.2f} %")
    if cost is not None:
        parts.append(f"{cost['macs']:,} MACs, {cost['params']:,} params")
    notes = results.get("notes", {})
    parts += [_numbers(name, notes[name]) for name in _FOUND if name in notes]
    print(": ".join([parts[0], "; ".join(parts[1:]) or "done"]))


def _numbers(name: str, numbers: Sequence[int]) -> str:
    return " ".join([name, *map(str, numbers)])


def _print_unprunable(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Reasons with their layers, in few lines."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["reason"], []).append(row["name"])
    for reason, names in list(reasons.items())[:_SHOWN]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(f"not prunable: {', '.join(names[:3])}{more}: {reason}", soft_wrap=True)
    if len(reasons) > _SHOWN:
        console.print(f"not prunable: layers for {len(reasons) - _SHOWN} more reasons")


def print_counts(counts: Mapping[str, Any]) -> None:
    """What `fastprune count` found."""
    console = Console(highlight=False, markup=False)
    shape = "x".join(str(n) for n in counts["input"])
    console.print(f"{counts['model']}, input {shape}, counting {counts['counting']}")
    if "code" in counts:
        console.print(f"code {' '.join(str(k) for k in counts['code'])}", soft_wrap=True)
    if "gene" in counts:
        for name in ("gene", "stage_out", "mid"):
            if not counts[name]:
                continue
            console.print(f"{name} {' '.join(str(k) for k in counts[name])}", soft_wrap=True)
    dropped = counts.get("dropped")
    columns = ["unpruned"] + (["pruned", "kept"] if "pruned" in counts else [])
    table = Table("", *columns, *(["dropped"] if dropped else []))
    for column in table.columns[1:]:
        column.justify = "right"
    for metric in ("macs", "params", "channels", "size_mb"):
        if metric not in counts:
            continue
        row = [_figure(counts[metric])]
        if "pruned" in counts:
            small = counts["pruned"][metric]
            row += [_figure(small), share(small, counts[metric])]
        if dropped:
            row.append(f"{100 * dropped[metric]:.2f} %" if metric in dropped else "")
        table.add_row(metric, *row)
    console.print(table)
    for group in counts.get("groups", ()):
        console.print(f"{group['name']}: {group['channels']} channels ({group['kind']})")
    for number, unit in enumerate(counts.get("units", ()), start=1):
        console.print(
            f"unit {number}, {unit['name']}: {', '.join(unit['groups'])}", soft_wrap=True
        )
    for number, row in enumerate(counts.get("ids", ()), start=1):
        fixed = " (fixed)" if row["fixed"] else ""
        console.print(
            f"id {number}, {row['name']}{fixed}: {', '.join(row['groups'])}", soft_wrap=True
        )
    _print_unprunable(console, counts.get("unprunable", ()))


def print_metrics(figures: Mapping[str, Any]) -> None:
    """What `fastprune evaluate` found."""
    print(
        f"{figures['model']} on {figures['dataset']} "
        f"({figures['split']}, {figures['images']} images): "
        f"top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} %, loss {figures['loss']:.4f}"
    )
    if figures["bad_images"]:
        print(f"left out, since they cannot be read: {', '.join(figures['bad_images'])}")


def print_members(found: Mapping[str, Iterable[Mapping[str, str]]]) -> None:
    """What `fastprune list` found."""
    for kind, members in found.items():
        print(f"{kind}:")
        for member in members:
            print(f"  {member['name']:<22} {member['summary']}".rstrip())


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def share(small: float, full: float) -> str:
    """A part of a whole as a table shows it."""
    return f"{100 * small / full:.1f} %" if full else "–"
