"""What a run of several joined networks reached: its experts, the fused networks, the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastprune.run.ensemble_report import part_of
from fastprune.run.grouping_plots import dendrogram_figure, similarity_figure
from fastprune.run.html import figures
from fastprune.run.html.blocks import Block, Column, Facts, Picture, Section, Table
from fastprune.run.html.content import RunContent
from fastprune.run.html.reached import amount, opening, part_of_whole, stages, unpruned_top1

__all__ = ["grouped", "joined"]

_SPLIT = "slowest + head"


def joined(run: RunContent) -> Section:
    """Accuracy, cost and latency of experts and of what they are fused to, as far as there are."""
    fusions = _fusions(run)
    blocks: list[Block] = [*opening(run), Facts(_facts(run, fusions))]
    if fusions:
        blocks += [*_pictures(run, fusions), _fused(run, fusions)]
    if experts := _experts(run):
        blocks.append(experts)
    timed = [fusion for fusion in fusions if "latency" in fusion]
    if timed:
        blocks.append(_latency(timed))
    return Section("What was reached", (*blocks, stages(run)))


def grouped(run: RunContent) -> Section | None:
    """Which classes are together on a device; None before they are grouped."""
    grouping, matrix = run.grouping, run.similarity
    if grouping is None or matrix is None:
        return None
    groups: Mapping[str, Sequence[Sequence[int]]] = run.results("group")["groups"]
    names = grouping.classes
    rows = tuple(
        (int(count), number, ", ".join(names[label] for label in part))
        for count, parts in groups.items()
        for number, part in enumerate(parts, start=1)
    )
    columns = (
        Column("devices", "devices", "d"),
        Column("device", "device", "d"),
        Column("classes", "classes"),
    )
    first = grouping.linkage[0]
    return Section(
        "Groups of classes",
        (
            Picture(
                "similarity",
                "How alike any two classes are",
                f"A field for each pair of {len(names)} classes, in the order of the dendrogram.",
                partial(similarity_figure, matrix, grouping),
            ),
            Picture(
                "dendrogram",
                "In which order classes were merged",
                f"A tree of {len(names)} classes; {names[first[0]]} and {names[first[1]]} are "
                f"merged first, at a distance of {first[2]:.3g}.",
                partial(dendrogram_figure, grouping),
            ),
            Table("groups_of_classes", "The classes of every device", columns, rows),
        ),
    )


def _fusions(run: RunContent) -> list[dict[str, Any]]:
    """By the number of devices, with their latency once it is measured."""
    timed = run.results("infer").get("inference", {})
    return [
        {
            "devices": int(count),
            **found,
            **({"latency": timed[count]["latency"]} if count in timed else {}),
        }
        for count, found in run.results("fuse").get("fusions", {}).items()
    ]


def _facts(run: RunContent, fusions: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    before, full = unpruned_top1(run), run.cost[0]
    rows = []
    for fusion in fusions:
        after = fusion["test"]["top1"]
        held = "" if before is None else f"{after - before:+.2f} points; unpruned {before:.2f} %"
        rows.append((f"top-1 accuracy, {fusion['devices']} devices", f"{after:.2f} %", held))
    if not fusions and before is not None:
        rows.append(("top-1 accuracy, unpruned", f"{before:.2f} %", "nothing fused yet"))
    if found := run.results("experts").get("experts"):
        for key, label in (("macs", "MACs"), ("params", "parameters")):
            most = max(expert["cost"][key] for expert in found)
            part = f"{part_of_whole(most, full[key])} of {amount(full[key])}"
            rows.append((f"{label} of the largest expert", amount(most), part))
    for fusion in fusions:
        if "latency" in fusion:
            split, whole = (part_of(fusion["latency"], part) for part in (_SPLIT, "unpruned"))
            speed = whole["median_ms"] / split["median_ms"]
            rows.append(
                (
                    f"latency, {fusion['devices']} devices, batch {split['batch']}",
                    f"{split['median_ms']:.2f} ms",
                    f"{speed:.2f} times as fast; unpruned {whole['median_ms']:.2f} ms",
                )
            )
    return tuple(rows)


def _pictures(run: RunContent, fusions: list[dict[str, Any]]) -> list[Block]:
    before = unpruned_top1(run)
    found: list[Block] = []
    if before is not None:
        points = ", ".join(f"{f['test']['top1']:.2f} % on {f['devices']}" for f in fusions)
        alt = f"Fused: {points} devices; a dashed line for the baseline at {before:.2f} %."
        caption = "Accuracy over the number of devices"
        found.append(Picture("fused", caption, alt, partial(figures.fused, fusions, before)))
    if all("latency" in fusion for fusion in fusions):
        times = ", ".join(
            f"{part_of(f['latency'], _SPLIT)['image_ms']:.2f} on {f['devices']}" for f in fusions
        )
        alt = f"Slowest expert and head: {times} devices, in milliseconds an image."
        caption = "Latency over the number of devices"
        found.append(Picture("latency", caption, alt, partial(figures.split_times, fusions)))
    return found


def _fused(run: RunContent, fusions: Sequence[Mapping[str, Any]]) -> Table:
    before = unpruned_top1(run)
    columns = (
        Column("devices", "devices", "d"),
        Column("top1", "fused top-1, %", ".2f"),
        Column("change", "change, points", "+.2f"),
        Column("top5", "top-5, %", ".2f"),
        Column("validation_top1", "validation top-1, %", ".2f"),
        Column("head_params", "head, parameters", ","),
        Column("head_mb", "head, MB", ".3f"),
    )
    rows = tuple(
        (
            fusion["devices"],
            fusion["test"]["top1"],
            None if before is None else fusion["test"]["top1"] - before,
            fusion["test"]["top5"],
            fusion["validation"]["top1"],
            fusion["head"]["params"],
            fusion["head"]["size_mb"],
        )
        for fusion in fusions
    )
    return Table("fusions", "The fused networks", columns, rows)


def _experts(run: RunContent) -> Table | None:
    experts, full = run.results("experts").get("experts"), run.cost[0]
    if not experts or run.grouping is None:
        return None
    names = run.grouping.classes
    columns = (
        Column("run", "expert"),
        Column("classes", "classes"),
        Column("macs", "MACs", ","),
        Column("macs_share", "of the unpruned", ".1%"),
        Column("params", "parameters", ","),
        Column("params_share", "of the unpruned", ".1%"),
        Column("focus_top1", "top-1 of its classes, %", ".2f"),
        Column("focus_top1_before", "unpruned, %", ".2f"),
    )
    rows = tuple(
        (
            expert["run"],
            ", ".join(names[label] for label in expert["classes"]),
            expert["cost"]["macs"],
            expert["cost"]["macs"] / full["macs"],
            expert["cost"]["params"],
            expert["cost"]["params"] / full["params"],
            expert["focus_top1"],
            expert["focus_top1_before"],
        )
        for expert in experts
    )
    caption = "The experts, each a run of its own in a folder of this one"
    return Table("experts", caption, columns, rows)


def _latency(fusions: Sequence[Mapping[str, Any]]) -> Table:
    columns = (
        Column("devices", "devices", "d"),
        Column("part", "part"),
        Column("device", "ran on"),
        Column("threads", "threads", "d"),
        Column("batch", "batch", "d"),
        Column("median_ms", "median, ms", ",.3f"),
        Column("low_ms", "lower quarter, ms", ",.3f"),
        Column("high_ms", "upper quarter, ms", ",.3f"),
        Column("image_ms", "an image, ms", ",.3f"),
    )
    keys = [column.key for column in columns[1:]]
    rows = tuple(
        (fusion["devices"], *(row[key] for key in keys))
        for fusion in fusions
        for row in fusion["latency"]
    )
    return Table("latency", "Latency of every part", columns, rows, folded=True)
