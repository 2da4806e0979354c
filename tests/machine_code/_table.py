"""The committed tables: what machine code may need, and the command that rewrites them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CUDA", "TRITON", "ceiling", "excess", "read", "write"]

TRITON = Path(__file__).with_name("triton.json")
CUDA = Path(__file__).with_name("cuda.json")
COMMAND = "python tests/machine_code/table.py --write"


def read(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(path: Path, rows: dict[str, dict[str, int]]) -> None:
    """One line an entry, sorted, so that a change is one line of a diff."""
    lines = [f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def ceiling(registers: int) -> int:
    """Registers that other versions of the compiler may use: a tenth more, in whole eights.

    Registers are handed out to warps by eights.
    """
    return -(-(registers + max(4, registers // 10)) // 8) * 8


def excess(entry: dict[str, Any], name: str, found: int, *, least: bool = False) -> str | None:
    """What is wrong with a figure, and what to do about it; None where it is within the table."""
    limit = entry[name]
    if found >= limit if least else found <= limit:
        return None
    return (
        f"{name}: {found}, {'at least' if least else 'at most'} {limit} in the table; "
        f"if that is meant: {COMMAND}"
    )
