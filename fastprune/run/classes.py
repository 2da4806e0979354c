"""``classes.csv``: how well the unpruned and the pruned network do on every class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastprune.files import write_atomically
from fastprune.training import Metrics

__all__ = ["write_classes"]


def write_classes(
    file: Path, found: Mapping[str, Metrics], classes: Sequence[str], focus: Sequence[int]
) -> None:
    """Writes a row a class and two of means; accuracies are in percent, empty without images.

    Columns: ``label`` (``focus``: mean of the classes in focus, each counting the same;
    ``overall``: of all images), ``class``, ``in_focus`` (1 or 0), and each network's accuracy.

    Args:
        file: where to.
        found: the networks' metrics by class, under the names of their columns.
        classes: names in the order of the labels.
        focus: labels of the classes the pruned network is for.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "class", "in_focus", *found])
    for label, name in enumerate(classes):
        own = [(metrics.by_class or ())[label] for metrics in found.values()]
        table.writerow([label, name, int(label in focus), *map(_percent, own)])
    means = [metrics.mean_of(focus) for metrics in found.values()]
    table.writerow(["focus", "", 1, *map(_percent, means)])
    table.writerow(["overall", "", "", *(_percent(m.top1) for m in found.values())])
    # Names of folders need not be UTF-8.
    write_atomically(file, text.getvalue().encode(errors="backslashreplace"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
