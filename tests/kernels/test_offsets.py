"""Offsets into tensors of more than 2^31 elements, held in the sources.

A program's number times its block overflows 32 bits long before memory ends, and no small case
shows it. So each ``tl.program_id(...)`` is made an int64 where it is taken, or a comment with the
word ``int32`` on its line or just above says what keeps it small.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels" / "triton"


def unguarded(source: str) -> list[int]:
    """Lines with a program's number that is neither widened nor explained."""
    tree, text = ast.parse(source), source.splitlines()
    widened = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "to"
        and [ast.unparse(argument) for argument in node.args] == ["tl.int64"]
        # A product would have overflowed before it is made wide.
        and not any(isinstance(inner, ast.Mult) for inner in ast.walk(node.func.value))
        for inner in ast.walk(node.func.value)
    }
    numbers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.program_id"
    ]
    return sorted(
        number.lineno
        for number in numbers
        if number not in widened and not explained(text, number.lineno)
    )


def explained(text: list[str], line: int) -> bool:
    """A comment on the line, or in the block of comments above it, speaks of int32."""
    if "int32" in text[line - 1].partition("#")[2]:
        return True
    for above in reversed(text[: line - 1]):
        if not above.lstrip().startswith("#"):
            return False
        if "int32" in above:
            return True
    return False


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.stem)
def test_program_numbers_are_wide_or_explained(path: Path) -> None:
    lines = unguarded(path.read_text())

    assert not lines, (
        f"{path.name}: lines {lines}: expected tl.program_id(...).to(tl.int64), or a comment with "
        "the word int32 that says why 32 bits are enough"
    )


def test_the_check_sees_what_it_should() -> None:
    source = """
at = tl.program_id(0) * BLOCK
at = tl.program_id(0).to(tl.int64) * BLOCK
# Of int32: there are fewer
# than 2^31 channels.
channel = tl.program_id(1)
row = tl.program_id(1)  # int32: at most 64
# 32 bits
column = tl.program_id(2).to(tl.int32)
last = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
late = (tl.program_id(0) * BLOCK).to(tl.int64)
"""
    assert unguarded(source) == [2, 9, 11]
