"""Figures as SVG, and as parts of a page."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from parsed import parse

from fastprune.run.html.svg import inline_svg
from fastprune.run.plots import new_figure, svg_of


def drawn(label: str = "loss") -> bytes:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([1, 2, 3], [3, 1, 2], marker="o", label=label)
    axes.imshow([[0, 1], [1, 0]])
    axes.legend()
    return svg_of(figure)


def test_one_figure_gives_the_same_bytes_and_its_letters() -> None:
    assert drawn() == drawn()
    assert ElementTree.fromstring(drawn("ι & <b>")).tag.endswith("svg")
    assert "ι &amp; &lt;b&gt;" in drawn("ι & <b>").decode()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_what_xml_cannot_hold_is_replaced() -> None:
    inlined = inline_svg(drawn("a\x01b"), "one", b"c\xff".decode(errors="surrogateescape"))

    assert "a\ufffdb" in [node.text for node in parse(inlined.markup).all("text")]
    assert "c\\udcff" in inlined.markup


def test_two_figures_on_a_page_share_no_name_and_find_their_own() -> None:
    one, two = (inline_svg(drawn(), name, "a picture").markup for name in ("one", "two"))
    nodes = parse(one + two).all()
    names = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    wanted = {
        value.removeprefix("url(").removesuffix(")").removeprefix("#")
        for node in nodes
        for key, value in node.attributes.items()
        if value.startswith("url(#") or (key == "xlink:href" and value.startswith("#"))
    }

    assert names
    assert len(set(names)) == len(names)
    assert set(names) == wanted


def test_what_is_drawn_stays_words() -> None:
    attack = 'id="x" url(#x) <script>alert(1)</script>'
    inlined = inline_svg(drawn(attack), "one", attack)
    root = parse(inlined.markup)

    assert not root.all("script", "style", "metadata")
    assert attack in [node.text for node in root.all("text")]
    (svg,) = root.children
    assert svg.attributes["aria-label"] == attack
    assert svg.attributes["role"] == "img"


def test_it_may_shrink_and_says_how_wide_it_is() -> None:
    inlined = inline_svg(drawn(), "one", "a picture")
    (svg,) = parse(inlined.markup).children

    # Four inches.
    assert inlined.pixels == 384
    assert svg.attributes["style"] == f"min-width: {0.72 * 384:.0f}px"
    assert not {"width", "height"} & svg.attributes.keys()
