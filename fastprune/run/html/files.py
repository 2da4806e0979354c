"""The figures and tables of a report as files: PNG and SVG, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from fastprune.files import write_atomically
from fastprune.run.html.blocks import Page, Picture, Section, Table, plain
from fastprune.run.html.page import anchors_of
from fastprune.run.plots import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawn", "write_files"]

Drawn = tuple["Figure", bytes]
"""A figure, and the same as SVG."""


def write_files(page: Page, drawn: Mapping[Picture, Drawn], folder: Path) -> list[Path]:
    """Writes every figure and table of a page, those of several runs to a folder a run.

    Args:
        page: the report.
        drawn: its pictures.
        folder: made if need be; files of the same names are replaced.

    Raises:
        OSError: the folder cannot be written.
    """
    places = list(_places(page, folder))
    written = []
    for place, sections in places:
        place.mkdir(parents=True, exist_ok=True)
        for block in (block for section in sections for block in section.blocks):
            if isinstance(block, Table):
                contents = {"csv": _csv(block), "json": _json(block)}
            elif isinstance(block, Picture):
                figure, svg = drawn[block]
                contents = {"png": png_of(figure), "svg": svg}
            else:
                continue
            for kind, content in contents.items():
                file = place / f"{block.name}.{kind}"
                write_atomically(file, content)
                written.append(file)
    return written


def _places(page: Page, folder: Path) -> Iterator[tuple[Path, tuple[Section, ...]]]:
    if not page.overview:
        yield folder, page.runs[0].sections
        return
    yield folder, page.overview
    for anchor, run in zip(anchors_of([run.name for run in page.runs]), page.runs, strict=True):
        yield folder / anchor, run.sections


def _csv(table: Table) -> bytes:
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([column.key for column in table.columns])
    lines.writerows(map(plain, row) for row in table.rows)
    return text.getvalue().encode(errors="backslashreplace")


def _json(table: Table) -> bytes:
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, map(plain, row), strict=True)) for row in table.rows]
    content = {"caption": table.caption, "rows": rows}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")
