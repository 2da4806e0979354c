"""The page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser_path

from fastprune.run.html.blocks import Column, Page, RunPart, Section, Shown, Table
from fastprune.run.html.page import render
from fastprune.run.html.write import write_report

pytestmark = pytest.mark.skipif(
    browser_path() is None, reason="no browser: neither Chromium nor Chrome is installed"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(finished: Path, hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    runs = [finished / name for name in ("gradual", "slimming", "colony")]
    write_report([*runs, hostile], out)
    return out


@pytest.mark.parametrize("width", [1200, 390])
def test_it_shows_without_an_error_and_asks_for_nothing(
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width=width)
    # What images and scripts would do, had a name become one.
    browser.value("new Promise(done => setTimeout(done, 300))")

    assert browser.of("Runtime.exceptionThrown", "Log.entryAdded") == []
    assert browser.of("Page.javascriptDialogOpening") == []
    asked = {event["request"]["url"] for event in browser.of("Network.requestWillBeSent")}
    assert asked == {page.as_uri()}
    sizes = json.loads(
        browser.value(
            "JSON.stringify([...document.querySelectorAll('figure svg')].map(svg => {"
            " const box = svg.getBoundingClientRect(); return [box.width, box.height]; }))"
        )
    )
    assert len(sizes) >= 9
    # A figure of two bars is the lowest.
    assert min(map(min, sizes)) > 50
    assert max(width for width, _ in sizes) <= 1200
    assert browser.value("document.documentElement.scrollWidth") <= width


def columns(browser: Browser) -> dict[str, list[str]]:
    """What the rows of the first table are sorted by, by heading."""
    heads, rows = json.loads(
        browser.value(
            "(() => { const table = document.querySelector('table'); return JSON.stringify(["
            "[...table.tHead.rows[0].cells].map(cell => cell.textContent),"
            "[...table.tBodies[0].rows].map(row => [...row.cells].map(c => c.dataset.key))]); })()"
        )
    )
    return dict(zip(heads, map(list, zip(*rows, strict=True)), strict=True))


def press(browser: Browser, heading: str) -> list[str]:
    """The first column, once a heading of the first table is pressed; and how that is said."""
    place = list(columns(browser)).index(heading)
    browser.value(f"document.querySelectorAll('table th button')[{place}].click()")
    said = browser.value(
        "[...document.querySelectorAll('table th[aria-sort]')]"
        ".map(cell => cell.textContent + ' ' + cell.getAttribute('aria-sort')).join()"
    )
    return [*next(iter(columns(browser).values())), said]


@pytest.mark.parametrize("heading", ["run", "MACs"])
def test_runs_are_sorted_by_the_heading_that_is_pressed(
    browser: Browser, page: Path, heading: str
) -> None:
    browser.open(page, width=1200)
    before = columns(browser)
    key = float if heading == "MACs" else str
    names = dict(zip(before[heading], before["run"], strict=True))
    assert len(names) == 4

    up = [names[value] for value in sorted(names, key=key)]
    assert press(browser, heading) == [*up, f"{heading} ascending"]
    assert press(browser, heading) == [*up[::-1], f"{heading} descending"]


def test_numbers_and_words_are_sorted_as_such_and_what_is_missing_comes_last(
    browser: Browser, tmp_path: Path
) -> None:
    table = Table(
        "cases",
        "Cases",
        (Column("name", "name"), Column("number", "number", "+.1f"), Column("word", "word")),
        (
            ("state-2", 10.0, "b"),
            ("state-10", None, None),
            ("state-1", -3.0, "A"),
            ("state-3", Shown(1e9, "1 G"), "c"),
            ("state-4", 0.00002, None),
        ),
    )
    part = RunPart("cases", "", (Section("Cases", (table,)),))
    (tmp_path / "cases.html").write_text(render(Page("cases", (), (part,)), {}))
    browser.open(tmp_path / "cases.html", width=1200)

    def states(*numbers: int) -> list[str]:
        return [f"state-{number}" for number in numbers]

    assert press(browser, "number") == [*states(1, 4, 2, 3, 10), "number ascending"]
    assert press(browser, "number") == [*states(3, 2, 4, 1, 10), "number descending"]
    assert press(browser, "name") == [*states(1, 2, 3, 4, 10), "name ascending"]
    assert press(browser, "word") == [*states(1, 2, 3, 4, 10), "word ascending"]
    assert press(browser, "word") == [*states(3, 2, 1, 4, 10), "word descending"]
    assert browser.of("Runtime.exceptionThrown", "Log.entryAdded") == []


def test_paper_shows_what_is_folded(browser: Browser, page: Path) -> None:
    browser.open(page, width=1200)
    closed = "document.querySelectorAll('details:not([open])').length"
    folded = browser.value(closed)
    assert folded > 4

    pdf = browser.send("Page.printToPDF")["data"]
    assert len(pdf) > 20_000
    browser.value("dispatchEvent(new Event('beforeprint'))")
    assert browser.value(closed) == 0
    browser.value("dispatchEvent(new Event('afterprint'))")
    assert browser.value(closed) == folded
