"""Which channels a run kept, layer by layer, and which it could not drop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastprune.run.html import figures
from fastprune.run.html.blocks import Block, Cell, Column, Lines, Picture, Section, Table
from fastprune.run.html.content import RunContent

__all__ = ["channels"]

_A_PICTURE = 40
"""Groups of one picture; more of them would not fit on a printed page."""

_NARROWEST = 10


def channels(run: RunContent) -> Section | None:
    """Kept channels of every group, the narrowest, and what is not prunable; None without a graph.

    Without a plan, the channels there are.
    """
    if run.graph is None:
        return None
    blocks: list[Block] = []
    if run.config.method.ensemble:
        blocks.append(Lines(("Each expert keeps channels of its own.",)))
    elif run.plan is None:
        blocks.append(Lines(("There is no pruning plan yet.",)))
    elif run.groups:
        blocks += _pictures(run)
        blocks.append(_narrowest(run))
    blocks += [_groups(run, run.graph), *_unprunable(run.graph)]
    return Section("Channels", tuple(blocks))


def _pictures(run: RunContent) -> list[Picture]:
    full, kept = run.groups, run.widths
    names = list(full)
    parts = [names[at : at + _A_PICTURE] for at in range(0, len(names), _A_PICTURE)]
    found = []
    for number, part in enumerate(parts, start=1):
        shares = {name: kept[name] / full[name] for name in part}
        low, high = min(part, key=shares.__getitem__), max(part, key=shares.__getitem__)
        one = len(parts) == 1
        found.append(
            Picture(
                "channels" if one else f"channels_{number}",
                "Share of channels kept in every group" + ("" if one else f", part {number}"),
                f"A bar for each of {len(part)} channel groups; least is kept of {low}, "
                f"{kept[low]} of {full[low]}, most of {high}, {kept[high]} of {full[high]}.",
                partial(figures.bars, {name: full[name] for name in part}, kept),
            )
        )
    return found


def _narrowest(run: RunContent) -> Table:
    """By the size of feature maps, as the report has it; of a run without one, of all groups."""
    full, kept = run.groups, run.widths
    columns = (
        Column("group", "group"),
        Column("kept", "kept", ","),
        Column("of", "of", ","),
        Column("share", "share", ".1%"),
    )

    def row(name: str) -> tuple[str, int, int, float]:
        return name, kept[name], full[name], kept[name] / full[name]

    if run.report is None:
        least = sorted(full, key=lambda name: kept[name] / full[name])[:_NARROWEST]
        return Table("narrowest", "The narrowest groups", columns, tuple(map(row, least)))
    by_maps = run.report["narrowest"]
    return Table(
        "narrowest",
        "The narrowest group of every size of feature maps",
        (Column("maps", "feature maps"), *columns),
        tuple((found["maps"], *row(found["group"])) for found in by_maps),
    )


def _groups(run: RunContent, graph: Mapping[str, Any]) -> Table:
    kept = run.widths
    columns: tuple[Column, ...] = (
        Column("group", "group"),
        Column("kind", "kind"),
        Column("channels", "channels", ","),
    )
    rows: list[tuple[Cell, ...]] = []
    for group in graph["groups"]:
        name, of = group["name"], group["channels"]
        left = (kept[name], kept[name] / of) if kept else ()
        rows.append((name, group["kind"], of, *left))
    if kept:
        columns += (Column("kept", "kept", ","), Column("share", "share", ".1%"))
    return Table("groups", "All channel groups", columns, tuple(rows), folded=True)


def _unprunable(graph: Mapping[str, Any]) -> list[Table]:
    rows = tuple((row["name"], row["channels"], row["reason"]) for row in graph["unprunable"])
    columns = (
        Column("name", "layer"),
        Column("channels", "channels", ","),
        Column("reason", "why its channels cannot be dropped"),
    )
    # A network may have hundreds of them.
    many = len(rows) > _NARROWEST
    return [Table("unprunable", "Not prunable", columns, rows, folded=many)] if rows else []
