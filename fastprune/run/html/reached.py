"""What a run reached, against its baseline: the first that is read of a report."""

from __future__ import annotations

from typing import Any

from fastprune.run.html.blocks import Block, Column, Facts, Lines, Section, Shown, Table
from fastprune.run.html.content import RunContent
from fastprune.run.report import accuracy_names

__all__ = [
    "amount",
    "final_top1",
    "opening",
    "part_of_whole",
    "reached",
    "stages",
    "unpruned_top1",
]

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def reached(run: RunContent) -> Section:
    """Accuracy, cost and latency, unpruned beside pruned; what a run has come to so far."""
    blocks: list[Block] = [*opening(run)]
    if facts := _facts(run):
        blocks.append(Facts(facts))
    blocks += [table for table in (_accuracy(run), _cost(run), _budget(run)) if table.rows]
    oracle = run.results("prune").get("oracle")
    if oracle is not None:
        said = (
            f"On {oracle['images']} test images the pruned network computed what the masked one "
            f"does, in float64 to within {oracle['relative_error']:g} of the largest output."
        )
        blocks.append(Lines((said,)))
    return Section("What was reached", (*blocks, stages(run)))


def opening(run: RunContent) -> tuple[Lines, ...]:
    """What is to be known before all figures: that a run is not finished, and its warnings."""
    lines = []
    if run.following is not None:
        lines.append(
            f"This run is not finished: {run.following} is next. It goes on by: {run.command}"
        )
    if run.report is not None:
        lines += run.report["warnings"]
    return (Lines(tuple(lines), warning=True),) if lines else ()


def unpruned_top1(run: RunContent) -> float | None:
    """Test accuracy of the unpruned network: the baseline's, else the one the method trained."""
    found = run.accuracy.get("baseline") or run.accuracy.get("trained_by_method")
    return None if found is None else found["top1"]


def final_top1(run: RunContent) -> float | None:
    """Test accuracy of what the run ended with; None before it is measured."""
    if "finetune" not in run.records:
        return None
    found = run.accuracy.get("finetuned") or run.accuracy.get("pruned")
    return None if found is None else found["top1"]


def amount(value: float) -> str:
    """A count in three figures: 4.86 M."""
    for unit, sign in _UNITS:
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {sign}"
    return f"{value:g}"


def _facts(run: RunContent) -> tuple[tuple[str, str, str], ...]:
    rows = []
    before, after = unpruned_top1(run), final_top1(run)
    if after is not None:
        held = "the unpruned network was not measured"
        if before is not None:
            held = f"{after - before:+.2f} points; unpruned {before:.2f} %"
        rows.append(("top-1 accuracy", f"{after:.2f} %", held))
    elif before is not None:
        rows.append(("top-1 accuracy, unpruned", f"{before:.2f} %", "nothing pruned yet"))
    full, small = run.cost
    for key, label in (("macs", "MACs"), ("params", "parameters")):
        if small:
            part = f"{part_of_whole(small[key], full[key])} of {amount(full[key])}"
            rows.append((label, amount(small[key]), part))
        elif full:
            rows.append((f"{label}, unpruned", amount(full[key]), "nothing pruned yet"))
    if small:
        size, before_it = small["size_mb"], full["size_mb"]
        part = f"{part_of_whole(size, before_it)} of {amount(1e6 * before_it)}B"
        rows.append(("size", f"{amount(1e6 * size)}B", part))
    if latency := run.latency:
        speed = f"{latency['speedup']:.2f} times as fast; unpruned {latency['unpruned_ms']:.2f} ms"
        rows.append(
            (f"latency, batch {latency['batch_size']}", f"{latency['pruned_ms']:.2f} ms", speed)
        )
    return tuple(rows)


def _accuracy(run: RunContent) -> Table:
    names = accuracy_names(run.config.method.name, run.notes)
    before = unpruned_top1(run)
    # Nothing is held against itself.
    held = next(iter(run.accuracy), None)
    rows = [
        (
            names[key],
            metrics["top1"],
            None if before is None or key == held else metrics["top1"] - before,
            metrics["top5"],
            metrics["loss"],
        )
        for key, metrics in run.accuracy.items()
    ]
    columns = (
        Column("network", "network"),
        Column("top1", "top-1, %", ".2f"),
        Column("change", "change, points", "+.2f"),
        Column("top5", "top-5, %", ".2f"),
        Column("loss", "loss", ".4f"),
    )
    return Table("accuracy", "Accuracy on the test images", columns, tuple(rows))


def _cost(run: RunContent) -> Table:
    full, small = run.cost
    metrics = {"macs": "MACs", "params": "parameters", "channels": "channels"}
    rows: list[tuple[str, float, float | None, str]] = [
        (label, full[key], small.get(key), ",") for key, label in metrics.items() if key in full
    ]
    notes = run.notes
    if "remaining_weights" in notes:
        rows.append(
            ("prunable weights", notes["prunable_weights"], notes["remaining_weights"], ",")
        )
    if full:
        rows.append(("size, MB", full["size_mb"], small.get("size_mb"), ".3f"))
    if latency := run.latency:
        threads = latency["threads"]
        where = f"{latency['device']}, {threads} thread{'' if threads == 1 else 's'}"
        label = f"latency, ms (batch {latency['batch_size']}, {where})"
        rows.append((label, latency["unpruned_ms"], latency["pruned_ms"], ".3f"))
    columns = (
        Column("metric", "metric"),
        Column("unpruned", "unpruned", ","),
        Column("pruned", "pruned", ","),
        Column("kept", "kept", ".1%"),
    )
    shown = tuple(
        (
            label,
            Shown(before, format(before, form)),
            None if after is None else Shown(after, format(after, form)),
            None if after is None or not before else after / before,
        )
        for label, before, after, form in rows
    )
    return Table("cost", "Cost of one image, and latency", columns, shown)


def _budget(run: RunContent) -> Table:
    columns = (
        Column("metric", "budget"),
        Column("limit", "at most", ",.0f"),
        Column("reached", "reached", ",.0f"),
        Column("met", "met"),
    )
    lines: list[dict[str, Any]] = run.results("prune").get("budget", [])
    rows = []
    for line in lines:
        form = ",.0f" if line["limit"] >= 100 else ",.3f"
        limit, got = line["limit"], line["reached"]
        shown = [Shown(value, format(value, form)) for value in (limit, got)]
        met = "yes" if got <= limit else "no"
        # Latency is measured, and may be over by what measuring scatters.
        if met == "no" and line["metric"] == "latency_ms" and run.notes["latency"]["held"]:
            met = "as nearly as can be measured"
        rows.append((line["metric"], *shown, met))
    return Table("budget", "What was to be met", columns, tuple(rows))


def stages(run: RunContent) -> Table:
    """How long every stage took."""
    rows = tuple((name, record.seconds, record.kills) for name, record in run.records.items())
    columns = (
        Column("stage", "stage"),
        Column("seconds", "seconds", ",.1f"),
        Column("kills", "killed processes, not counted in", "d"),
    )
    return Table("stages", "Time of every stage", columns, rows, folded=True)


def part_of_whole(part: float, whole: float) -> str:
    """A share, as percent."""
    return f"{part / whole:.1%}" if whole else "all"
