"""Markup: what is words stays words."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed import parse

from fastprune.run.html.markup import Html, element, joined, text


def test_words_are_escaped_and_markup_is_not() -> None:
    inner = element("b", None, "1 < 2")

    assert inner == "<b>1 &lt; 2</b>"
    assert element("p", {"title": '"<&'}, inner, " & more") == (
        '<p title="&quot;&lt;&amp;"><b>1 &lt; 2</b> &amp; more</p>'
    )
    assert joined(["<", Html("<i>")]) == "&lt;<i>"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")))
def test_any_words_come_back(words: str) -> None:
    (found,) = parse(element("p", {"title": words}, words)).children

    assert found.text == words
    assert found.attributes == {"title": words}
    assert html.unescape(text(words)) == words


def test_bytes_that_are_no_unicode_are_shown_escaped() -> None:
    assert text(b"a\xff".decode(errors="surrogateescape")) == "a\\udcff"


@pytest.mark.parametrize("name", ["meta", "br"])
def test_elements_without_content_are_not_closed(name: str) -> None:
    assert element(name, {"a": "b"}) == f'<{name} a="b">'
