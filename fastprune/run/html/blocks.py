"""What a report is made of, as plain data: sections of tables, figures and text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Block",
    "Cell",
    "Code",
    "Column",
    "Facts",
    "Lines",
    "Link",
    "Page",
    "Picture",
    "RunPart",
    "Section",
    "Shown",
    "Table",
    "plain",
    "slug",
]


class Shown(NamedTuple):
    """A value and how it is to be read; files have the value, rows are sorted by it."""

    value: str | int | float | None
    text: str


class Link(NamedTuple):
    """A word that leads to a part of the page."""

    text: str
    target: str


Cell = str | int | float | Shown | Link | None


def plain(cell: Cell) -> str | int | float | None:
    """The value of a cell, as files have it."""
    if isinstance(cell, Shown):
        return cell.value
    return cell.text if isinstance(cell, Link) else cell


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        key: its name in files.
        heading: its name for people.
        form: format of its numbers, as `format` takes it; None for words.
    """

    key: str
    heading: str
    form: str | None = None

    def text(self, cell: Cell) -> str:
        """How a cell is read."""
        if isinstance(cell, Shown | Link):
            return cell.text
        if cell is None:
            return ""
        return str(cell) if self.form is None or isinstance(cell, str) else format(cell, self.form)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; its first column names the rows.

    Attributes:
        name: stem of its files, the same in every report.
        caption: what it shows.
        columns: as many as every row has cells.
        rows: in the order in which they are shown at first.
        folded: shown when asked for.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.name}: expected {len(self.columns)} cells, got {len(row)}: {row}"
                )


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure that is drawn when the report is written.

    Attributes:
        name: stem of its files.
        caption: what it shows.
        alt: what is to be seen in it, for those who cannot.
        draw: makes it.
    """

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(frozen=True, slots=True)
class Facts:
    """The few figures that a report is read for: a label, a figure and what it is held against."""

    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """Paragraphs; as warnings, if they are some."""

    lines: tuple[str, ...]
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Code:
    """Text that is shown letter by letter.

    Attributes:
        caption: what it is.
        text: the lines.
        folded: shown when asked for.
    """

    caption: str
    text: str
    folded: bool = False


Block = Table | Picture | Facts | Lines | Code


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a heading."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class RunPart:
    """What is said of one run."""

    name: str
    subtitle: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report.

    Attributes:
        title: of the window.
        overview: sections about all runs; none for a single run.
        runs: in the order in which they were given.
    """

    title: str
    overview: tuple[Section, ...]
    runs: tuple[RunPart, ...]


def slug(name: str, taken: Sequence[str] = ()) -> str:
    """A name for an anchor or a folder, of ASCII letters, digits, ``-``, ``_`` and ``.``."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    numbered = (f"{plain}-{number}" for number in range(2, len(taken) + 3))
    return plain if plain not in taken else next(n for n in numbered if n not in taken)
