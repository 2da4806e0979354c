"""What two runs of one configuration leave, compared to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastprune.files import TEMPORARY

__all__ = ["differences"]

APART = (
    # Who runs, or ran, and where.
    "lock",
    "environment.json",
    # Times are in them.
    "report.html",
    "inference.csv",
    "devices.png",
)
"""Files that two runs have of their own."""

MEASURED = ("seconds", "kills", "latency", "warnings", "command", "directory")
"""Fields of JSON that say how long something took, how often it was killed, or where it was."""


def differences(one: Path, other: Path) -> list[str]:
    """What of two run directories is not the same, but for what is measured; checkpoints apart.

    A file that a crash left half-written counts, too.
    """
    found = [str(file) for folder in (one, other) for file in folder.rglob(f"{TEMPORARY}*")]
    names = [_files(folder) for folder in (one, other)]
    found += [f"{name}: only in one" for name in sorted(names[0] ^ names[1])]
    return found + [
        f"{name}: differs"
        for name in sorted(names[0] & names[1])
        if _lasting(one, name) != _lasting(other, name)
    ]


def _files(folder: Path) -> set[str]:
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return {
        file.as_posix() for file in files if file.name not in APART and "work" not in file.parts
    }


def _lasting(folder: Path, name: str) -> Any:
    """The content of a file without what is measured."""
    file = folder / name
    if file.suffix == ".json":
        content = _plain(json.loads(file.read_text()))
        if file.parent.name == "stages":
            # Of all the rest, times with it; and an ensemble's report is made from times.
            del content["digest"]
            if file.stem == "report":
                del content["inputs"]
        return content
    if file.suffix == ".jsonl":
        rows = [_plain(json.loads(line)) for line in file.read_text().splitlines()]
        # Candidates that are trained at the same time are done in any order.
        return sorted(rows, key=lambda row: row["number"]) if file.stem == "trials" else rows
    content = file.read_bytes()
    # The configuration of an expert names the baseline that it begins with.
    return content.replace(str(folder).encode(), b"") if name.endswith(".yaml") else content


def _plain(content: Any) -> Any:
    if isinstance(content, list):
        return [_plain(each) for each in content]
    if not isinstance(content, dict):
        return content
    # And no digests of files that have times in them.
    return {
        key: _plain(value)
        for key, value in content.items()
        if key not in MEASURED and Path(key).name not in ("report.json", "report.html")
    }
