"""The parts of a report."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastprune.run.html.blocks import Column, Link, Shown, Table, plain, slug


@given(st.lists(st.text(max_size=8), max_size=6))
def test_slugs_are_plain_and_each_is_another(names: list[str]) -> None:
    found: list[str] = []
    for name in names:
        found.append(slug(name, found))

    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in found)
    assert not {".", ".."} & set(found)


def test_cells_are_read_as_their_column_says() -> None:
    column = Column("share", "share", ".1%")

    assert column.text(0.5) == "50.0%"
    assert column.text(None) == ""
    assert column.text("none") == "none"
    assert column.text(Shown(5_000_000, "5 M")) == "5 M"
    assert Column("word", "word").text(0.5) == "0.5"
    assert [plain(c) for c in (1, None, Shown(2, "two"), Link("run", "#run"))] == [
        1,
        None,
        2,
        "run",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes: expected 1 cells, got 2"):
        Table("sizes", "Sizes", (Column("a", "a"),), ((1, 2),))
