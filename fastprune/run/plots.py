"""Pictures of a run: what was kept of every group, how a search and how training went."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastprune.files import write_atomically
from fastprune.methods._trials import TrialLog, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from fastprune.run.trainings import Epoch

__all__ = [
    "COLORS",
    "draw_fitness",
    "draw_front",
    "new_figure",
    "percent_ticks",
    "plot_channels",
    "plot_search",
    "plot_training",
    "png_of",
    "read_trials",
    "svg_of",
    "text_of",
    "training_figure",
    "whole_ticks",
    "write_figure",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with any kind of colour vision (Okabe and Ito's, but for yellow on white)."""


_TRAINED: dict[str, Any] = {"color": COLORS[0], "marker": ".", "markersize": 4, "linewidth": 1.2}
_HELD_OUT: dict[str, Any] = {**_TRAINED, "color": COLORS[1], "linestyle": "dashed"}
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
    figure = new_figure(max(6.0, 0.18 * len(full) + 2), 4)
    axes = figure.subplots()
    places = range(len(full))
    axes.bar(places, list(full.values()), color="lightgray", label="original")
    axes.bar(places, [kept.get(name, full[name]) for name in full], color="tab:blue", label="kept")
    axes.set_xticks(list(places), list(full), rotation=90, fontsize=6)
    axes.set_ylabel("channels")
    axes.margins(x=0.01)
    axes.legend()
    write_figure(path, figure)


def plot_search(path: Path, trials: Path) -> None:
    """Fitness over the candidates with the best so far, and MACs against fitness with the front.

    Args:
        path: of the PNG file.
        trials: ``trials.jsonl``.
    """
    rows = read_trials(trials)
    figure = new_figure(11, 4)
    over, against = figure.subplots(1, 2)
    draw_fitness(over, rows)
    draw_front(against, rows, front(TrialLog(trials, read_only=True)))
    # Below, since points may lie anywhere.
    handles, labels = (
        a + b[-1:]
        for a, b in zip(
            over.get_legend_handles_labels(), against.get_legend_handles_labels(), strict=True
        )
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    write_figure(path, figure)


def read_trials(file: Path) -> list[dict[str, Any]]:
    """The whole lines of ``trials.jsonl``, by their numbers."""
    # Of a search under way the last line may be a part.
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return sorted(map(json.loads, lines), key=lambda row: row["number"])


def draw_fitness(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Fitness over the candidates, by phase, and the best so far; of rows by `read_trials`."""
    for phase, part in _by_phase(rows).items():
        places, fitness = _column(part, "number"), _column(part, "fitness")
        axes.scatter(places, fitness, s=12, color=_PHASES.get(phase), label=phase)
    best = list(accumulate(_column(rows, "fitness"), max))
    axes.step(_column(rows, "number"), best, where="post", color="black", label="best so far")
    axes.set_xlabel("candidate")
    axes.set_ylabel("fitness, %")


def draw_front(
    axes: Axes, rows: Sequence[Mapping[str, Any]], edge: Sequence[Mapping[str, Any]]
) -> None:
    """Fitness against MACs, by phase, and the front, as `front` gives it."""
    for phase, part in _by_phase(rows).items():
        macs = [row["cost"]["macs"] / 1e6 for row in part]
        axes.scatter(macs, _column(part, "fitness"), s=12, color=_PHASES.get(phase), label=phase)
    axes.step(
        [row["macs"] / 1e6 for row in edge],
        _column(edge, "fitness"),
        where="post",
        color="black",
        linewidth=0.8,
        linestyle="dashed",
        label="front",
    )
    axes.set_xlabel("million MACs")
    axes.set_ylabel("fitness, %")


def _by_phase(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    phases = dict.fromkeys(row["phase"] for row in rows)
    return {phase: [row for row in rows if row["phase"] == phase] for phase in phases}


def plot_training(path: Path, trainings: Mapping[str, Sequence[Epoch]]) -> None:
    """Loss, accuracy and learning rate over the epochs of all trainings, one after the other.

    Args:
        path: of the PNG file.
        trainings: their epochs, by name, in the order in which they were trained.
    """
    total = sum(map(len, trainings.values()))
    write_figure(path, training_figure(trainings, min(16.0, max(8.0, 0.12 * total))))


def training_figure(trainings: Mapping[str, Sequence[Epoch]], width: float) -> Figure:
    """What `plot_training` draws, this many inches wide."""
    figure = new_figure(width, 7)
    panels = loss, accuracy, rate = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 3, 1.4]}
    )
    begin, middles, names = 0, [], []
    for number, (name, epochs) in enumerate(trainings.items()):
        places = [begin + epoch.epoch for epoch in epochs]
        end = places[-1]
        if number % 2:
            for axes in panels:
                axes.axvspan(begin + 0.5, end + 0.5, color="0.94", linewidth=0)
        for axes, style, seen, values in (
            (loss, _TRAINED, "training", [e.train_loss for e in epochs]),
            (loss, _HELD_OUT, "validation", [e.validation_loss for e in epochs]),
            (accuracy, _TRAINED, "training", [e.train_top1 for e in epochs]),
            (accuracy, _HELD_OUT, "validation", [e.validation_top1 for e in epochs]),
            (rate, _TRAINED, "", [e.learning_rate for e in epochs]),
        ):
            if any(value is not None for value in values):
                known = [math.nan if value is None else value for value in values]
                first = seen not in axes.get_legend_handles_labels()[1]
                axes.plot(places, known, label=seen if first and seen else None, **style)
        middles.append((begin + end + 1) / 2)
        names.append(text_of(name))
        begin = end
    loss.set_ylabel("loss")
    accuracy.set_ylabel("top-1, %")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch, of all trainings in turn")
    rate.set_xlim(0.5, begin + 0.5)
    whole_ticks(rate.xaxis)
    over = loss.secondary_xaxis("top")
    # Three names an inch go side by side, at most two dozen.
    few = slice(None, None, -(-len(names) // min(24, int(3 * width))))
    over.set_xticks(middles[few], names[few], rotation=0 if len(names) < 5 else 90, fontsize=8)
    over.tick_params(length=0)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def percent_ticks(axis: Axis) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times powers of ten."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def whole_ticks(axis: Axis) -> None:
    """An axis with ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def text_of(name: str) -> str:
    """A name as matplotlib shows it letter by letter: no formula, not left out of legends."""
    plain = name.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    # Without pyplot, which would look for a display and keep every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(path: Path, figure: Figure) -> None:
    """The figure as a PNG file, written atomically."""
    write_atomically(path, png_of(figure))


def png_of(figure: Figure) -> bytes:
    """The figure as PNG."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def svg_of(figure: Figure) -> bytes:
    """The same bytes of the same figure; letters are letters, for readers and for searching."""
    import matplotlib

    content = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fastprune", "svg.fonttype": "none"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    # XML has no way to write these, and a class or a layer may be called so.
    return re.sub(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd".encode(), content.getvalue())
