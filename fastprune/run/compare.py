"""``fastprune compare``: finished runs of any method side by side."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastprune.errors import ConfigError
from fastprune.files import write_atomically, write_json
from fastprune.run.compared_run import COLUMNS, ComparedRun, printable, read_finished
from fastprune.run.comparison_plot import plot_comparison

__all__ = ["Comparison", "compare", "names_apart", "print_comparison"]

_WIDEST = 10_000
_WORDS = ("run", "method", "network", "dataset")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared.

    Attributes:
        runs: in the order in which they were given, each once.
        notes: what was left out and why, and in what the runs differ; a line each.
        files: that were written.
    """

    runs: tuple[ComparedRun, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``comparison.json`` has it."""
        return {"runs": [asdict(run) for run in self.runs], "notes": list(self.notes)}


def compare(paths: Sequence[Path], out: Path) -> Comparison:
    """Reads runs and writes ``comparison.csv``, ``.json`` and ``.png``, each as a whole.

    Args:
        paths: run directories; what is none, or not finished, is left out and noted.
        out: the folder of the files, made if need be.

    Raises:
        ConfigError: no run is left to compare, a line for each; ``out`` cannot be written.
    """
    runs: list[ComparedRun] = []
    left_out: list[str] = []
    notes: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            rows, said = read_finished(path)
        except ConfigError as error:
            left_out.append(error.problems[0])
        except KeyError as error:
            left_out.append(f"{path}: of another version of fastprune: its report has no {error}")
        else:
            runs += rows
            notes += said
    if not runs:
        raise ConfigError(left_out or "expected a run directory or several")
    runs, same = _told_apart(runs)
    notes = [f"left out: {line}" for line in left_out] + notes + same + _mixed(runs)
    found = Comparison(tuple(runs), tuple(notes), ())
    files = tuple(out / f"comparison.{kind}" for kind in ("csv", "json", "png"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        plot_comparison(files[2], runs)
        write_atomically(files[0], _csv(runs))
        write_json(files[1], found.to_dict())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot write there: {error.strerror}") from None
    return replace(found, files=files)


def print_comparison(comparison: Comparison) -> None:
    """The runs as a table on standard output, a row each.

    On a terminal that is too narrow for it, columns in which all runs agree go above the table.
    """
    console = Console(highlight=False, markup=False)
    columns = _cells(comparison.runs)
    wide = console.options.update(max_width=_WIDEST)
    width = console.measure(_table(columns), options=wide).maximum
    if not console.is_terminal:
        # A row a line, however wide, for what reads it next.
        console.width = max(console.width, width)
    elif width > console.width and len(comparison.runs) > 1:
        same = {name: cells[0] for name, cells in columns.items() if len(set(cells)) == 1}
        columns = {name: cells for name, cells in columns.items() if name not in same}
        shown = ", ".join(f"{name} {cell}" for name, cell in same.items() if cell)
        console.print(f"all runs: {shown}", soft_wrap=True)
    console.print(_table(columns))
    print("saved:", ", ".join(str(file) for file in comparison.files))


def _table(columns: dict[str, list[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in _WORDS else "right", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _cells(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """The table's columns, by their headings."""

    def each(text: Callable[[ComparedRun], str | None]) -> list[str]:
        return [text(run) or "" for run in runs]

    return {
        "run": each(lambda run: run.name),
        "method": each(lambda run: " ".join(filter(None, (run.method, run.variant)))),
        "network": each(lambda run: run.network),
        "dataset": each(lambda run: run.dataset),
        "seed": each(lambda run: str(run.seed)),
        "top-1 before, %": each(lambda run: _figure(run.top1_before, ".2f")),
        "top-1 after, %": each(lambda run: f"{run.top1_after:.2f}"),
        "MACs": each(lambda run: f"{run.macs:,} ({run.macs_share:.1%})"),
        "params": each(lambda run: f"{run.params:,} ({run.params_share:.1%})"),
        "channels": each(lambda run: f"{run.channels:,} ({run.channels_share:.1%})"),
        "weights left": each(lambda run: _figure(run.remaining_weights, ".3%")),
        "states": each(lambda run: _figure(run.states, "d")),
        "seconds": each(lambda run: f"{run.seconds:,.1f}"),
    }


def _figure(value: float | None, how: str) -> str | None:
    return None if value is None else format(value, how)


def _told_apart(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], list[str]]:
    """The runs with names of their own: those that share one get the folders it lies in."""
    names_of = {run.path: run.name for run in runs}
    names = names_apart(list(names_of.values()), [Path(path) for path in names_of])
    own = dict(zip(names_of, names, strict=True))
    shared = sorted({run.name for run in runs if run.name != own[run.path]})
    notes = [
        f"several runs are called {name!r}, and shown with the folders they lie in"
        for name in shared
    ]
    return [replace(run, name=own[run.path]) for run in runs], notes


def names_apart(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Names of runs; of those that share one, with as many folders as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    found = list(names)
    for depth in range(2, max(map(len, parts)) + 1):
        found = [
            name if found.count(name) == 1 else printable("/".join(part[-depth:]))
            for name, part in zip(found, parts, strict=True)
        ]
    return found


def _mixed(runs: Sequence[ComparedRun]) -> list[str]:
    notes = []
    for what, values in (
        ("networks", {run.network: None for run in runs}),
        ("datasets", {run.dataset: None for run in runs}),
    ):
        if len(values) > 1:
            notes.append(f"the runs are of {len(values)} {what}: {', '.join(values)}")
    return notes


def _csv(runs: Sequence[ComparedRun]) -> bytes:
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([getattr(run, name) for name in COLUMNS] for run in runs)
    return text.getvalue().encode()
