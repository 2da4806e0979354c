"""What may be wrong with what a user gives: plain data, text, bytes and tensors, changed.

Functions of hypothesis' ``draw`` rather than strategies, of whose arguments it would make texts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

__all__ = ["changed", "damaged", "other_tensors", "words"]

_NUMBERS = (-1, 0, 1, 2, 3, 0.3, 0.999, -0.5, 1e-9, 1e300, 2**40, 10**30, math.nan, math.inf)
_WORDS = ("", " ", "auto", "none", "0.5", "1e-4", "../x", "/", "~nobody/x", "\x00", "ä\u2028", "*")
JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_NUMBERS),
    st.integers(-3, 12),
    st.sampled_from(_WORDS),
    st.text(max_size=6),
    st.lists(st.one_of(st.integers(-1, 12), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(0, 3), max_size=2),
)


_KINDS = (*("near",) * 4, *("other",) * 3, "gone", "new", "named", "in")


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type, most of which are right where this one is."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.integers(max(value - 2, 0), value + 2)
    if isinstance(value, float):
        return st.floats(0, 2 * value)
    if isinstance(value, list):
        return st.permutations(value)
    return st.just(value)


def changed(draw: st.DrawFn, content: Any, most: int = 3) -> Any:
    """Nested lists and mappings of which some things are others, gone, added, or elsewhere."""
    found = copy.deepcopy(content)
    for _ in range(draw(st.sampled_from((1, 1, 1, *range(2, most + 1))))):
        places = list(_places(found))
        if not places:
            return draw(JUNK)
        where, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(_KINDS))
        if kind == "near":
            where[key] = draw(_near(where[key]))
        elif kind == "other":
            where[key] = draw(JUNK)
        elif kind == "gone":
            del where[key]
        elif kind == "in":
            where[key] = draw(st.sampled_from(([where[key]], {"name": where[key]})))
        elif isinstance(where, list):
            where.insert(key, draw(JUNK))
        elif kind == "new":
            where[draw(st.text(max_size=6))] = draw(JUNK)
        else:
            where[f"{key}x" if draw(st.booleans()) else str(key)[:-1]] = where.pop(key)
    return found


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every mapping or list in it with each of its keys or places."""
    keys: Any = content if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from _places(content[key])


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are others, missing or too many."""
    size = len(content)
    at, until = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    kind = draw(st.sampled_from(("cut", "bits", "bits", "zeros", "gone", "more", "all", "twice")))
    if kind == "cut":
        return content[:at]
    if kind == "zeros":
        return content[:at] + bytes(until - at) + content[until:]
    if kind == "gone":
        return content[:at] + content[until:]
    if kind == "more":
        return content[:at] + draw(st.binary(min_size=1, max_size=20)) + content[at:]
    if kind == "all":
        return draw(st.binary(max_size=200))
    if kind == "twice":
        return content + content
    changed_bytes = bytearray(content)
    for _ in range(draw(st.integers(1, 8)) if size else 0):
        # Headers, where most can go wrong, are at the beginning and the end.
        near = draw(st.sampled_from((size, min(size, 400))))
        place = draw(st.integers(0, near - 1))
        place = size - 1 - place if draw(st.booleans()) else place
        changed_bytes[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed_bytes)


def words(draw: st.DrawFn, whole: str) -> str:
    """Numbers in a text, or none, as codes and genes are given."""
    items: list[str] = whole.split()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(items) - 1, 0)))
        kind = draw(st.sampled_from(("other", "other", "gone", "more", "cut")))
        new = draw(st.one_of(JUNK.map(str), st.integers(-2, 40).map(str)))
        if kind == "other" and items:
            items[at] = new
        elif kind == "gone" and items:
            del items[at]
        elif kind == "more":
            items.insert(at, new)
        elif kind == "cut":
            items = items[:at]
    text = draw(st.sampled_from((" ", ",", ", ", ";", "  "))).join(items)
    return draw(st.sampled_from((text, f"[{text}]", text.upper())))


_TYPES = (
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
)
_TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t.unsqueeze(0),
    lambda t: t.flatten()[:0],
    lambda t: t.flatten(),
    lambda t: t.new_zeros(()),
    lambda t: torch.full_like(t.float(), math.nan),
    lambda t: t.tolist(),
    lambda t: None,
    lambda t: {"weight": t},
    lambda t: t.to_sparse(),
    lambda t: t.to("meta"),
    lambda t: t.expand(3, *t.shape),
    *((lambda t, kind=kind: t.to(kind)) for kind in _TYPES),
)


def other_tensors(draw: st.DrawFn, state: dict[str, Tensor]) -> Any:
    """A state dict with other keys, shapes or types, or wrapped once too often."""
    found: dict[Any, Any] = dict(state)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(map(str, found)) or [""]))
        kind = draw(st.sampled_from(("other", "other", "gone", "named", "new", "key", "in")))
        if kind == "other" and key in found:
            tensor = found[key]
            if isinstance(tensor, Tensor) and not tensor.is_sparse and not tensor.is_meta:
                found[key] = draw(st.sampled_from(_TENSORS))(tensor)
        elif kind == "gone":
            found.pop(key, None)
        elif kind == "named" and key in found:
            found[draw(st.text(max_size=8))] = found.pop(key)
        elif kind == "new":
            found[draw(st.text(max_size=8))] = draw(JUNK)
        elif kind == "key":
            found[draw(st.integers(0, 3))] = torch.zeros(2)
        elif kind == "in":
            found = {draw(st.sampled_from(("state_dict", "model", "other", "module."))): found}
    return found
