"""HTML that cannot be broken by what it shows: every word is escaped but what `element` made."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

__all__ = ["Html", "element", "joined", "text"]

_VOID = frozenset({"meta", "br"})


class Html(str):
    """Markup; any other string is words."""

    __slots__ = ()


def text(words: str) -> Html:
    """Words as markup that shows them."""
    # What is in no Unicode, as odd bytes of file names are, cannot be written to a file.
    return Html(html.escape(words.encode(errors="backslashreplace").decode()))


def joined(parts: Iterable[str]) -> Html:
    """Markup and words, one after the other."""
    return Html("".join(part if isinstance(part, Html) else text(part) for part in parts))


def element(name: str, attributes: Mapping[str, str] | None = None, *content: str) -> Html:
    """An element with these attributes around markup and words."""
    given = "".join(f' {key}="{text(value)}"' for key, value in (attributes or {}).items())
    return Html(
        f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{joined(content)}</{name}>"
    )
