"""Commands that read what runs left: ``compare``, ``report``, ``plot`` and ``group``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastprune.cli._app import (
    Json,
    Quiet,
    app,
    print_json,
)


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run directories, for instance runs/*.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of comparison.csv, .json and .png; default: here."),
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Compare finished runs of any method: accuracy, cost and time, as table, files and figure."""
    from fastprune.run.compare import compare as compare_runs
    from fastprune.run.compare import print_comparison

    found = compare_runs(runs, out)
    for line in found.notes:
        print(f"fastprune: {line}", file=sys.stderr)
    if as_json:
        print_json(found.to_dict())
    else:
        print_comparison(found)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Run directories; a run need not be finished."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The page; by default RUN/report.html, of several runs ./report.html.",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            "--files",
            metavar="DIR",
            help="Every figure as PNG and SVG and every table as CSV and JSON, too.",
        ),
    ] = None,
) -> None:
    """Write what runs reached as one HTML page that needs no network and nothing beside it."""
    from fastprune.run.html.write import write_report

    written = write_report(runs, out, files)
    for line in written.notes:
        print(f"fastprune: {line}", file=sys.stderr)
    for file in (written.page, *written.files):
        print(file)


@app.command()
def plot(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory; the run need not be finished.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the figures; by default RUN.")
    ] = None,
) -> None:
    """Draw the figures of a run: training curves, search, kept channels, states, penalty."""
    from fastprune.run.figures import draw_run

    for file in draw_run(path, out):
        print(file)


@app.command()
def group(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory with a trained baseline.")
    ],
    similarity: Annotated[
        str, typer.Option(help="Of two classes' mean logits: cosine or covariance.")
    ] = "cosine",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the files; by default RUN.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Group the classes that a run's baseline finds alike, for 2 devices up to one a class."""
    from fastprune.run.grouping import group_run, print_groups

    found = group_run(path, similarity, out, quiet=quiet)
    if as_json:
        print_json(found.to_dict())
    else:
        print_groups(found)
