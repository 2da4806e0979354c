"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

from fastprune.run.compare import ComparedRun, network_of
from fastprune.run.html import figures
from fastprune.run.html.asked import given_options, spelt
from fastprune.run.html.blocks import Block, Cell, Column, Link, Picture, Section, Shown, Table
from fastprune.run.html.content import RunContent
from fastprune.run.html.reached import amount, final_top1, unpruned_top1

__all__ = ["overview"]

_PICTURES = {
    "macs_share": ("accuracy_macs", "Test accuracy against MACs"),
    "params_share": ("accuracy_params", "Test accuracy against parameters"),
    "remaining_weights": ("accuracy_weights", "Test accuracy against prunable weights left"),
}


def overview(runs: Sequence[RunContent], anchors: Sequence[str]) -> tuple[Section, ...]:
    """The runs in a table that can be sorted, drawn together, and what differs in their options.

    Args:
        runs: two or more, each with a name of its own.
        anchors: of their parts of the page.
    """
    finished = [row for run in runs for row in run.compared]
    blocks: list[Block] = [_runs(runs, anchors)]
    blocks += [_picture(finished, share) for share in _PICTURES if _any(finished, share)]
    different = _differences(runs)
    return (
        Section("Runs side by side", tuple(blocks)),
        *((Section("What differs in what was asked", (different,)),) if different.rows else ()),
    )


def _any(runs: Sequence[ComparedRun], share: str) -> bool:
    return any(getattr(run, share) is not None for run in runs)


def _picture(runs: Sequence[ComparedRun], share: str) -> Picture:
    name, caption = _PICTURES[share]
    points = "; ".join(
        f"{run.name}: {run.top1_after:.2f} % at {getattr(run, share):.1%}"
        for run in runs
        if getattr(run, share) is not None
    )
    return Picture(name, caption, f"{points}.", partial(figures.runs_against, runs, share))


def _runs(runs: Sequence[RunContent], anchors: Sequence[str]) -> Table:
    columns = (
        Column("run", "run"),
        Column("state", "state"),
        Column("method", "method"),
        Column("network", "network"),
        Column("dataset", "dataset"),
        Column("seed", "seed", "d"),
        Column("top1_before", "unpruned top-1, %", ".2f"),
        Column("top1_after", "top-1, %", ".2f"),
        Column("change", "change, points", "+.2f"),
        Column("macs", "MACs", ","),
        Column("macs_share", "MACs kept", ".1%"),
        Column("params", "parameters", ","),
        Column("params_share", "parameters kept", ".1%"),
        Column("channels_share", "channels kept", ".1%"),
        Column("weights_share", "weights left", ".2%"),
        Column("size_mb", "size, MB", ".2f"),
        Column("latency_ms", "latency, ms", ".2f"),
        Column("speedup", "times as fast", ".2f"),
        Column("seconds", "seconds", ",.1f"),
    )
    rows = [_row(run, anchor) for run, anchor in zip(runs, anchors, strict=True)]
    used = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Table(
        "runs",
        "The runs; press a heading to sort by it",
        tuple(columns[i] for i in used),
        tuple(tuple(row[i] for i in used) for row in rows),
    )


def _row(run: RunContent, anchor: str) -> tuple[Cell, ...]:
    before, after = unpruned_top1(run), final_top1(run)
    full, small = run.cost
    latency = (run.report or {}).get("latency") or {}

    def count(key: str) -> Cell:
        return Shown(small[key], amount(small[key])) if small else None

    def share(key: str) -> float | None:
        return small[key] / full[key] if small and full[key] else None

    return (
        Link(run.name, anchor),
        "finished" if run.following is None else f"{run.following} is next",
        run.config.method.name,
        network_of(run.config),
        run.config.data.name,
        run.config.seed,
        before,
        after,
        None if before is None or after is None else after - before,
        count("macs"),
        share("macs"),
        count("params"),
        share("params"),
        share("channels"),
        run.compared[0].remaining_weights if run.compared else None,
        small.get("size_mb"),
        latency.get("pruned_ms"),
        latency.get("speedup"),
        sum(record.seconds for record in run.records.values()),
    )


def _differences(runs: Sequence[RunContent]) -> Table:
    options = [given_options(run.config) for run in runs]
    rows = tuple(
        (name, *(spelt(given[name]) if name in given else None for given in options))
        for name in dict.fromkeys(chain.from_iterable(options))
        if any(name not in given or given[name] != options[0].get(name) for given in options)
    )
    columns = (
        Column("option", "option"),
        *(Column(run.name, run.name) for run in runs),
    )
    return Table(
        "differences",
        "Options in which the runs differ; empty is the default, or of another method",
        columns,
        rows,
    )
