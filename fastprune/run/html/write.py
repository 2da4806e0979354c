"""Writes a report of runs: the page and, where asked for, its figures and tables as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastprune.errors import ConfigError, FastpruneError
from fastprune.files import write_atomically
from fastprune.run.compare import names_apart
from fastprune.run.compared_run import network_of
from fastprune.run.html.asked import asked, noted, repeating
from fastprune.run.html.blocks import Page, Picture, RunPart, Section
from fastprune.run.html.channels import channels
from fastprune.run.html.content import RunContent, read_run
from fastprune.run.html.course import classes, search, sparsity, ticket, training
from fastprune.run.html.ensemble import grouped, joined
from fastprune.run.html.files import Drawn, write_files
from fastprune.run.html.overview import overview
from fastprune.run.html.page import anchors_of, render
from fastprune.run.html.reached import reached
from fastprune.run.paths import PAGE, RunPaths
from fastprune.run.plots import svg_of

__all__ = ["Written", "write_report"]

SECTIONS: tuple[Callable[[RunContent], Section | None], ...] = (
    reached,
    asked,
    channels,
    search,
    ticket,
    sparsity,
    classes,
    training,
    noted,
    repeating,
)
"""Of a run, in their order; each gives None where the run holds nothing for it."""

ENSEMBLE_SECTIONS = (joined, asked, grouped, channels, training, repeating)
"""The same of a run of several joined networks."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        page: the HTML file.
        files: figures and tables, where they were asked for.
        notes: which runs were left out, and which are not finished; a line each.
    """

    page: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def write_report(
    paths: Sequence[Path], out: Path | None = None, folder: Path | None = None
) -> Written:
    """Writes what runs, finished or not, have reached; they are only read.

    Args:
        paths: run directories; one that is given twice counts once.
        out: the HTML file; by default ``report.html``, of one run in its directory, of several in
            the working directory.
        folder: for every figure as PNG and SVG and every table as CSV and JSON; None for none.

    Raises:
        ConfigError: none of them can be reported, for the reasons given; a file cannot be written.
        CheckpointError: the only run has a damaged line in a file.
    """
    places: dict[Path, Path] = {}
    for path in paths:
        places.setdefault(path.resolve(), path)
    unique = list(places.values())
    runs, notes = _read_all(unique)
    page = _page(runs)
    drawn: dict[Picture, Drawn] = {}
    for picture in _pictures(page):
        figure = picture.draw()
        drawn[picture] = figure, svg_of(figure)
    text = render(page, {picture: svg for picture, (_, svg) in drawn.items()})
    file = out or (RunPaths(unique[0]).page if len(unique) == 1 else Path(PAGE))
    if file.is_dir():
        raise ConfigError(f"--out {file}: is a folder; expected an HTML file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files = [] if folder is None else write_files(page, drawn, folder)
        write_atomically(file, text.encode())
    except OSError as error:
        where = error.filename or file
        raise ConfigError(f"{where}: cannot write there: {error.strerror}") from None
    return Written(file, tuple(files), tuple(notes))


def _read_all(paths: Sequence[Path]) -> tuple[list[RunContent], list[str]]:
    """The runs that can be reported, each with a name of its own, and what is to be said."""
    runs: list[RunContent] = []
    notes: list[str] = []
    for path in paths:
        try:
            run = read_run(path)
        except FastpruneError as error:
            if len(paths) == 1:
                raise
            problems = error.problems if isinstance(error, ConfigError) else (str(error),)
            notes.append(f"left out: {problems[0]}")
            continue
        runs.append(run)
        if run.following is not None:
            notes.append(
                f"{path}: not finished, {run.following} is next; reported as far as it is"
            )
    if not runs:
        raise ConfigError(notes or "expected a run directory or several")
    names = names_apart([run.name for run in runs], [run.paths.path for run in runs])
    return [_named(run, name) for run, name in zip(runs, names, strict=True)], notes


def _named(run: RunContent, name: str) -> RunContent:
    return replace(run, name=name, compared=tuple(replace(c, name=name) for c in run.compared))


def _page(runs: Sequence[RunContent]) -> Page:
    parts = tuple(_part(run) for run in runs)
    if len(runs) == 1:
        return Page(f"{runs[0].name}: pruning report", (), parts)
    places = [f"run-{anchor}" for anchor in anchors_of([run.name for run in runs])]
    return Page(f"Pruning report of {len(runs)} runs", overview(runs, places), parts)


def _part(run: RunContent) -> RunPart:
    config = run.config
    what = f"{network_of(config)} on {config.data.name}, {config.method.name}, seed {config.seed}"
    chosen = ENSEMBLE_SECTIONS if config.method.ensemble else SECTIONS
    sections = (section(run) for section in chosen)
    return RunPart(run.name, what, tuple(s for s in sections if s is not None))


def _pictures(page: Page) -> Iterator[Picture]:
    for section in (*page.overview, *(section for run in page.runs for section in run.sections)):
        for block in section.blocks:
            if isinstance(block, Picture):
                yield block
