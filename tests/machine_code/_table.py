"""The committed tables: what machine code may need, and the command that rewrites them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = [
    "COMMAND",
    "CUDA",
    "TRITON",
    "ceiling",
    "compiler",
    "excess",
    "read",
    "version",
    "write",
]

TRITON = Path(__file__).with_name("triton.json")
CUDA = Path(__file__).with_name("cuda.json")
COMMAND = "python tests/machine_code/table.py --write"


def read(path: Path) -> dict[str, dict[str, int]]:
    """The entries of a table by name."""
    rows: dict[str, dict[str, int]] = _content(path)["rows"]
    return rows


def compiler(path: Path) -> str | None:
    """What the table was made with, ``"triton 3.9"``."""
    name: str | None = _content(path)["compiler"]
    return name


def write(path: Path, compiler: str, rows: dict[str, dict[str, int]]) -> None:
    """One line an entry, sorted, so that a change is one line of a diff."""
    lines = [f"    {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows)]
    body = ",\n".join(lines)
    path.write_text(f'{{\n  "compiler": {json.dumps(compiler)},\n  "rows": {{\n{body}\n  }}\n}}\n')


def _content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"compiler": None, "rows": {}}
    return found | (json.loads(path.read_text()) if path.exists() else {})


def version(text: str) -> str:
    """Major and minor of a version."""
    return ".".join(text.split(".")[:2])


def ceiling(registers: int) -> int:
    """Registers that small changes may use: a tenth more, in whole eights.

    Registers are handed out to warps by eights.
    """
    return -(-(registers + max(4, registers // 10)) // 8) * 8


def excess(
    entry: dict[str, Any], name: str, found: int, *, least: bool = False, other: bool = False
) -> str | None:
    """What is wrong with a figure, and what to do about it; None where it is within the table.

    Args:
        entry: of the table.
        name: of the figure.
        found: its value.
        least: the table holds the least, not the most.
        other: the compiler is not the table's. Triton 3.6 takes up to a half more registers than
            3.9, and up to four times the shared memory.
    """
    limit = entry[name] * ({"registers": 1.5, "shared": 4}.get(name, 1) if other else 1)
    if found >= limit if least else found <= limit:
        return None
    return (
        f"{name}: {found}, {'at least' if least else 'at most'} {limit} in the table; "
        f"if that is meant: {COMMAND}"
    )
