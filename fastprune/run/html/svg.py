"""SVG files as parts of a page."""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree import ElementTree

from fastprune.run.html.markup import Html

__all__ = ["Inlined", "inline_svg"]

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_LEFT_OUT = {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}
_REFERENCE = re.compile(r"url\(#([^)]*)\)")

_NARROWEST = 0.72
"""The share of its width to which a figure shrinks; where there is less room it is scrolled."""


class Inlined(NamedTuple):
    """A figure as an element of a page, and how wide it is by nature."""

    markup: Html
    pixels: float


def inline_svg(content: bytes, name: str, alt: str) -> Inlined:
    """An SVG file as an element of a page.

    Args:
        content: of the file.
        name: of the figure, of letters, digits, ``-``, ``_``, ``.``; no other on the page has it.
        alt: what is to be seen in it.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(content)
    _without(root, _LEFT_OUT)
    used = {target for part in root.iter() for target in _targets(part)}
    for part in root.iter():
        # Names of one figure are those of the next too, and a page must have each once.
        if (own := part.get("id")) is not None:
            del part.attrib["id"]
            if own in used:
                part.set("id", f"{name}-{own}")
        for key, value in part.attrib.items():
            if key == _LINK and value.startswith("#"):
                part.set(key, f"#{name}-{value[1:]}")
            elif key != "id" and "url(#" in value:
                part.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    natural = float(root.attrib["viewBox"].split()[2]) * 96 / 72
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    least = f"min-width: {_NARROWEST * natural:.0f}px"
    label = alt.encode(errors="backslashreplace").decode()
    root.attrib.update({"role": "img", "aria-label": label, "style": least})
    return Inlined(Html(ElementTree.tostring(root, encoding="unicode")), natural)


def _without(part: ElementTree.Element, names: set[str]) -> None:
    for child in list(part):
        if child.tag in names:
            part.remove(child)
        else:
            _without(child, names)


def _targets(part: ElementTree.Element) -> list[str]:
    found = [name for value in part.attrib.values() for name in _REFERENCE.findall(value)]
    link = part.get(_LINK, "")
    return [*found, link[1:]] if link.startswith("#") else found
