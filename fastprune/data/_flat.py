"""How to sort a folder of images without class folders, as ImageNet's validation set comes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

__all__ = ["how_to_sort"]

_KAGGLE = "LOC_val_solution.csv"
_DEVKIT = Path("ILSVRC2012_devkit_t12", "data")


def how_to_sort(part: Path, images: set[str]) -> str | None:
    """What was found that says the images' classes, and the command that sorts them by it.

    Args:
        part: the folder, ``val/`` beside ``train/``.
        images: names of the files in it.

    Returns:
        One line; None where no such file lies in ``part``, beside it, or where the archives of
        ImageNet put it.
    """
    stems = {os.path.splitext(name)[0] for name in images}
    numbers = None
    for file in _candidates(part):
        rows = _first_rows(file)
        # A header is a row of other words.
        for skipped, row in enumerate(rows):
            if len(row) > 1 and (row[0] in images or row[0] in stems):
                return _command(part, file, row, skipped, suffixed=row[0] in images)
        if numbers is None and rows and all(len(r) == 1 and r[0].isdecimal() for r in rows):
            numbers = file
    if numbers is None:
        return None
    return (
        f"{numbers} has a number for each, which only meta.mat of ImageNet's development kit ties "
        "to a class folder: torchvision.datasets.ImageNet(ROOT, 'val') sorts the original archives"
    )


def _candidates(part: Path) -> Iterator[Path]:
    """Text files in the folder and beside it, and those of the development kit and of Kaggle."""
    for folder in (part, part.parent, part.parent / _DEVKIT):
        if folder.is_dir():
            files = (entry for entry in folder.iterdir() if entry.suffix in (".txt", ".csv"))
            yield from sorted(file for file in files if file.is_file())
    # Kaggle has ILSVRC/Data/CLS-LOC/val, and its table beside ILSVRC.
    yield from (p / _KAGGLE for p in part.parent.parents[:3] if (p / _KAGGLE).is_file())


def _first_rows(file: Path) -> list[list[str]]:
    """The words of the first two lines."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return [re.split(r"[\s,;]+", line[:4096].strip()) for line in islice(lines, 2)]


def _command(part: Path, file: Path, row: list[str], skipped: int, *, suffixed: bool) -> str:
    train = part.parent / "train"
    if train.is_dir() and not (train / row[1]).is_dir():
        return (
            f"{file} gives {row[0]} the class {row[1]!r}, which is no folder of {train}; expected "
            "a file of that kind with train/'s names"
        )
    image = '"$file"' if suffixed else '"$file".*'
    # The last line may end without a newline, which `read` takes for a failure.
    return (
        f"{file} has their classes; sort them by it: cd {shlex.quote(str(part))} && "
        f"tail -n +{skipped + 1} {shlex.quote(str(file.absolute()))} | tr ',;\\r' '   ' | "
        'while read -r file class _ || [ "$file" ]; do '
        f'mkdir -p "$class" && mv {image} "$class"; done'
    )
