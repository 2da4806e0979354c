"""What commands found, as tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fastprune.latency import TOLERANCE
from fastprune.run.report import accuracy_names

__all__ = [
    "print_counts",
    "print_ending",
    "print_members",
    "print_metrics",
    "print_report",
    "print_stage",
    "print_title",
    "row_console",
    "share",
]

_SHOWN = 8
_WIDEST = 10_000
# What a search found, in the words of its method.
_FOUND = ("code", "gene")


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
    print_title(console, report)
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
    print_ending(console, report)


def print_title(console: Console, report: Mapping[str, Any]) -> None:
    """What ran, on what."""
    title = f"{report['model']} on {report['dataset']}, {report['method']}, seed {report['seed']}"
    console.print(title, style="bold")


def print_ending(console: Console, report: Mapping[str, Any]) -> None:
    """What it took, what to beware of, where it is and how to have it again."""
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
    if found["held"] and found["reached_ms"] > found["limit_ms"]:
        missed = f"; within the {TOLERANCE:.0%} that measuring may be off"
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
