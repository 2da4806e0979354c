"""A report as one HTML file: nothing beside it, no network, readable without its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping

from fastprune import __version__
from fastprune.run.html.blocks import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Lines,
    Link,
    Page,
    Picture,
    Section,
    Table,
    plain,
    slug,
)
from fastprune.run.html.markup import Html, element, joined
from fastprune.run.html.style import SCRIPT, STYLE
from fastprune.run.html.svg import inline_svg

__all__ = ["anchors_of", "render"]

_BROAD = 560
"""Pixels from which on a figure is printed over the whole width."""

_WIDE = 9
"""Columns from which on the first stays in sight while a table is scrolled."""


def anchors_of(names: list[str]) -> list[str]:
    """Names of the parts of a page that are about runs of these names, each its own."""
    found: list[str] = []
    for name in names:
        found.append(slug(name, found))
    return found


def render(page: Page, drawn: Mapping[Picture, bytes]) -> str:
    """The page.

    Args:
        page: what it says.
        drawn: its pictures as SVG.
    """
    # Whatever a name or an option holds, nothing is loaded and no other script runs.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "generator", "content": f"fastprune {__version__}"}),
        element("title", None, page.title),
        element("style", None, Html(STYLE)),
    )
    body = element(
        "body",
        None,
        *_body(page, drawn),
        element("footer", None, f"Written by fastprune {__version__}."),
        element("script", None, Html(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{element('html', {'lang': 'en'}, head, body)}\n"


def _body(page: Page, drawn: Mapping[Picture, bytes]) -> Iterator[Html]:
    if not page.overview:
        (run,) = page.runs
        yield element("h1", None, run.name)
        yield element("p", {"class": "subtitle"}, run.subtitle)
        headings = [section.heading for section in run.sections]
        places = [f"part-{slug(heading)}" for heading in headings]
        yield _contents(headings, places)
        yield element("main", None, *_sections(run.sections, "h2", "part", drawn))
        return
    yield element("h1", None, page.title)
    anchors = anchors_of([run.name for run in page.runs])
    yield _contents([run.name for run in page.runs], [f"run-{anchor}" for anchor in anchors])
    parts = [*_sections(page.overview, "h2", "all", drawn)]
    for run, anchor in zip(page.runs, anchors, strict=True):
        parts.append(
            element(
                "section",
                {"id": f"run-{anchor}", "class": "run"},
                element("h2", None, run.name),
                element("p", {"class": "subtitle"}, run.subtitle),
                *_sections(run.sections, "h3", anchor, drawn),
            )
        )
    yield element("main", None, *parts)


def _contents(names: list[str], places: list[str]) -> Html:
    links = (
        element("li", None, element("a", {"href": f"#{place}"}, name))
        for name, place in zip(names, places, strict=True)
    )
    return element("nav", {"aria-label": "Contents"}, element("ul", None, *links))


def _sections(
    sections: tuple[Section, ...], heading: str, prefix: str, drawn: Mapping[Picture, bytes]
) -> Iterator[Html]:
    for section in sections:
        yield element(
            "section",
            {"id": f"{prefix}-{slug(section.heading)}"},
            element(heading, None, section.heading),
            *_blocks(section, prefix, drawn),
        )


def _blocks(section: Section, prefix: str, drawn: Mapping[Picture, bytes]) -> Iterator[Html]:
    """Pictures that follow each other stand side by side where there is room."""
    row: list[Html] = []
    for block in section.blocks:
        if isinstance(block, Picture):
            row.append(_picture(block, prefix, drawn[block]))
            continue
        if row:
            yield element("div", {"class": "figures"}, *row)
            row = []
        yield _block(block)
    if row:
        yield element("div", {"class": "figures"}, *row)


def _picture(picture: Picture, prefix: str, content: bytes) -> Html:
    image = inline_svg(content, f"{prefix}-{picture.name}", picture.alt)
    given = {"style": f"width: {image.pixels:.0f}px"}
    if image.pixels > _BROAD:
        given["class"] = "broad"
    shown = _scroll(picture.caption, image.markup)
    return element("figure", given, element("figcaption", None, picture.caption), shown)


def _block(block: Block) -> Html:
    match block:
        case Table():
            shown = _table(block)
            return _folded(block.caption, shown) if block.folded else shown
        case Facts():
            return element("dl", {"class": "facts"}, *(_fact(*row) for row in block.rows))
        case Lines():
            if not block.warning:
                return joined(element("p", None, line) for line in block.lines)
            sign = element("strong", None, "Warning: ")
            return joined(element("p", {"class": "warning"}, sign, line) for line in block.lines)
        case Code():
            shown = element("pre", {"tabindex": "0"}, block.text)
            if block.folded:
                return _folded(block.caption, shown)
            return joined([element("p", None, f"{block.caption}:"), shown])
        case Picture():
            raise TypeError("pictures are placed in rows")


def _folded(caption: str, content: Html) -> Html:
    return element("details", None, element("summary", None, caption), content)


def _fact(label: str, figure: str, beside: str) -> Html:
    return element(
        "div",
        None,
        element("dt", None, label),
        element("dd", {"class": "figure"}, figure),
        element("dd", None, beside),
    )


def _scroll(label: str, content: Html) -> Html:
    # Focus, so that it can be scrolled by keys too.
    return element(
        "div",
        {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label},
        content,
    )


def _table(table: Table) -> Html:
    sortable = len(table.rows) > 1
    heads = (_heading(column, sortable=sortable) for column in table.columns)
    rows = (
        element(
            "tr",
            None,
            *(
                _cell(column, cell, first=not place)
                for place, (column, cell) in enumerate(zip(table.columns, row, strict=True))
            ),
        )
        for row in table.rows
    )
    whole = element(
        "table",
        {"class": "wide"} if len(table.columns) >= _WIDE else None,
        element("caption", None, element("span", None, table.caption)),
        element("thead", None, element("tr", None, *heads)),
        element("tbody", None, *rows),
    )
    return _scroll(table.caption, whole)


def _heading(column: Column, *, sortable: bool) -> Html:
    kind = {"scope": "col", "class": "word" if column.form is None else "number"}
    words = column.heading
    return element("th", kind, element("button", {"type": "button"}, words) if sortable else words)


def _cell(column: Column, cell: Cell, *, first: bool) -> Html:
    value = plain(cell)
    given = {"data-key": "" if value is None else str(value)}
    if column.form is not None:
        given["class"] = "number"
    content: str = column.text(cell)
    if isinstance(cell, Link):
        content = element("a", {"href": f"#{cell.target}"}, cell.text)
    return element("th" if first else "td", given | ({"scope": "row"} if first else {}), content)
