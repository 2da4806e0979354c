"""Pictures of a run: what was kept of every group, and how a search went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastprune.files import write_atomically
from fastprune.methods._trials import TrialLog, front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_channels", "plot_search"]

_PHASES = {
    "initial": "tab:gray",
    "employed": "tab:blue",
    "onlooker": "tab:orange",
    "scout": "tab:green",
    "random": "tab:gray",
    "mutation": "tab:blue",
    "crossover": "tab:orange",
}


def plot_channels(path: Path, full: Mapping[str, int], kept: Mapping[str, int]) -> None:
    """Bars of every group's channels, whole and kept.

    Args:
        path: of the PNG file.
        full: channels of the unpruned network's groups.
        kept: those of the pruned one's.
    """
    figure = _figure(max(6.0, 0.18 * len(full) + 2), 4)
    axes = figure.subplots()
    places = range(len(full))
    axes.bar(places, list(full.values()), color="lightgray", label="original")
    axes.bar(places, [kept.get(name, full[name]) for name in full], color="tab:blue", label="kept")
    axes.set_xticks(list(places), list(full), rotation=90, fontsize=6)
    axes.set_ylabel("channels")
    axes.margins(x=0.01)
    axes.legend()
    _write(path, figure)


def plot_search(path: Path, trials: Path) -> None:
    """Fitness over the candidates with the best so far, and MACs against fitness with the front.

    Args:
        path: of the PNG file.
        trials: ``trials.jsonl``.
    """
    rows: list[dict[str, Any]] = [json.loads(line) for line in trials.read_text().splitlines()]
    rows.sort(key=lambda row: row["number"])
    figure = _figure(11, 4)
    over, against = figure.subplots(1, 2)
    for phase in dict.fromkeys(row["phase"] for row in rows):
        part = [row for row in rows if row["phase"] == phase]
        color = _PHASES.get(phase)
        fitness = [row["fitness"] for row in part]
        over.scatter(_column(part, "number"), fitness, s=12, color=color, label=phase)
        macs = [row["cost"]["macs"] / 1e6 for row in part]
        against.scatter(macs, fitness, s=12, color=color, label=phase)
    edge = front(TrialLog(trials, read_only=True))
    against.step(
        [row["macs"] / 1e6 for row in edge],
        _column(edge, "fitness"),
        where="post",
        color="black",
        linewidth=0.8,
        linestyle="dashed",
        label="front",
    )
    best = list(accumulate(_column(rows, "fitness"), max))
    over.step(_column(rows, "number"), best, where="post", color="black", label="best so far")
    over.set_xlabel("candidate")
    over.set_ylabel("fitness, %")
    against.set_xlabel("million MACs")
    against.set_ylabel("fitness, %")
    # Below, since points may lie anywhere.
    handles, labels = (
        a + b[-1:]
        for a, b in zip(
            over.get_legend_handles_labels(), against.get_legend_handles_labels(), strict=True
        )
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    _write(path, figure)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


def _figure(width: float, height: float) -> Figure:
    # Without pyplot, which would look for a display and keep every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(path: Path, figure: Figure) -> None:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
