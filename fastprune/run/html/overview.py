"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

from fastprune.run.compared_run import ComparedRun, network_of
from fastprune.run.html import figures
from fastprune.run.html.asked import given_options, spelt
from fastprune.run.html.blocks import Block, Cell, Column, Link, Picture, Section, Shown, Table
from fastprune.run.html.content import RunContent
from fastprune.run.html.reached import amount, final_top1, unpruned_top1

__all__ = ["overview"]

_MANY = 20
"""Options from which on they are shown when asked for."""

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
    rows = [row for run, anchor in zip(runs, anchors, strict=True) for row in _rows(run, anchor)]
    used = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Table(
        "runs",
        "The runs; press a heading to sort by it",
        tuple(columns[i] for i in used),
        tuple(tuple(row[i] for i in used) for row in rows),
    )


def _rows(run: RunContent, anchor: str) -> list[tuple[Cell, ...]]:
    """A row; of an ensemble that is finished, one for each number of devices."""
    if run.config.method.ensemble and run.compared:
        return [_row(run, anchor, row, *_ensemble(row)) for row in run.compared]
    full, small = run.cost
    return [_row(run, anchor, run.compared[0] if run.compared else None, full, small)]


def _ensemble(row: ComparedRun) -> tuple[dict[str, float], dict[str, float]]:
    """What unpruned and joined networks cost, of a row."""
    small: dict[str, float] = {"macs": row.macs, "params": row.params, "channels": row.channels}
    shares = {"macs": row.macs_share, "params": row.params_share, "channels": row.channels_share}
    return {key: value / shares[key] for key, value in small.items()}, small


def _row(
    run: RunContent,
    anchor: str,
    compared: ComparedRun | None,
    full: Mapping[str, float],
    small: Mapping[str, float],
) -> tuple[Cell, ...]:
    before = unpruned_top1(run)
    after = final_top1(run) if compared is None else compared.top1_after
    variant = None if compared is None else compared.variant

    def count(key: str) -> Cell:
        return Shown(small[key], amount(small[key])) if small else None

    def share(key: str) -> float | None:
        return small[key] / full[key] if small and full[key] else None

    return (
        Link(run.name, anchor),
        "finished" if run.following is None else f"{run.following} is next",
        ", ".join(filter(None, (run.config.method.name, variant))),
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
        None if compared is None else compared.remaining_weights,
        small.get("size_mb"),
        run.latency.get("pruned_ms"),
        run.latency.get("speedup"),
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
        folded=len(rows) > _MANY,
    )
