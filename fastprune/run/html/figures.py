"""The figures of a report: one panel each, narrow enough for a phone; drawn by what draws a run's.

Each function gives a matplotlib figure; nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastprune.methods._scales import QUANTILES, ScaleRecord
from fastprune.methods._states import StateRecord
from fastprune.run.comparison_plot import draw_runs
from fastprune.run.ensemble_plots import draw_fused, draw_times
from fastprune.run.plots import (
    COLORS,
    draw_fitness,
    draw_front,
    new_figure,
    text_of,
    training_figure,
    whole_ticks,
)
from fastprune.run.state_plots import (
    draw_accuracy,
    draw_left,
    penalty_figure,
    state_channels_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastprune.run.compared_run import ComparedRun
    from fastprune.run.trainings import Epoch

__all__ = [
    "bars",
    "fitness",
    "front_of",
    "fused",
    "penalty",
    "runs_against",
    "scale_penalty",
    "scales",
    "shortened",
    "split_times",
    "state_accuracy",
    "state_channels",
    "state_left",
    "trainings_of",
]

_WIDTH = 5.2
"""Inches; 500 pixels. A phone of 390 shows it at three quarters, letters at 9 pixels."""

_LONGEST = 34


def bars(full: Mapping[str, int], kept: Mapping[str, int]) -> Figure:
    """A bar a group with the share of its channels that is kept, and both numbers."""
    # Shares, since groups of 12 and of 300 channels stand side by side in one network.
    names = list(full)
    figure = new_figure(_WIDTH, 0.22 * len(names) + 0.6)
    axes = figure.subplots()
    places = range(len(names))
    axes.barh(places, [100] * len(names), color="0.88")
    axes.barh(places, [100 * kept[name] / full[name] for name in names], color="tab:blue")
    for place, name in enumerate(names):
        axes.text(102, place, f"{kept[name]} of {full[name]}", va="center", fontsize=8)
    axes.set_yticks(places, [text_of(shortened(name)) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 128)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("channels kept, %", loc="left")
    return figure


def fitness(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Fitness over the candidates of a search."""
    return _panel(lambda axes: draw_fitness(axes, rows))


def front_of(rows: Sequence[Mapping[str, Any]], edge: Sequence[Mapping[str, Any]]) -> Figure:
    """Fitness of the candidates against their MACs."""
    return _panel(lambda axes: draw_front(axes, rows, edge))


def state_left(states: Sequence[StateRecord]) -> Figure:
    """What every state of a ticket has left."""
    return _plain(lambda axes: draw_left(axes, states))


def state_accuracy(states: Sequence[StateRecord]) -> Figure:
    """The accuracies of every state of a ticket."""
    return _plain(lambda axes: draw_accuracy(axes, states))


def state_channels(full: Mapping[str, int], states: Sequence[StateRecord]) -> Figure:
    """The share of every group's channels that each state keeps."""
    return state_channels_figure(full, states)


def penalty(states: Sequence[StateRecord]) -> Figure:
    """Strength of the growing penalty in the course of every state."""
    return penalty_figure(states)


def scales(records: Sequence[ScaleRecord], threshold: float | None) -> Figure:
    """Quantiles of batch norm scales over epochs, and the threshold they were cut by, if any."""
    epochs = [record.epoch for record in records]
    columns = dict(zip(QUANTILES, zip(*(r.quantiles for r in records), strict=True), strict=True))

    def draw(axes: Axes) -> None:
        for low, high, shade in ((0.1, 0.9, 0.2), (0.25, 0.75, 0.4)):
            axes.fill_between(
                epochs,
                columns[low],
                columns[high],
                label=f"{low:.0%} to {high:.0%}",
                color=COLORS[0],
                alpha=shade,
                linewidth=0,
            )
        axes.plot(epochs, columns[0.5], color=COLORS[0], marker=".", label="median")
        if threshold is not None:
            axes.axhline(threshold, color=COLORS[1], linestyle="dashed", label="threshold")
        axes.set_ylim(bottom=0)
        _over_epochs(axes, "|γ|")

    return _panel(draw, columns=4)


def scale_penalty(records: Sequence[ScaleRecord]) -> Figure:
    """The sparsity penalty over epochs."""

    def draw(axes: Axes) -> None:
        places, values = [r.epoch for r in records], [r.penalty for r in records]
        axes.plot(places, values, color=COLORS[0], marker=".", label="penalty")
        axes.set_ylim(bottom=0)
        _over_epochs(axes, "s·Σ|γ|")

    return _panel(draw)


def _over_epochs(axes: Axes, label: str) -> None:
    axes.set_xlabel("epoch of sparse training")
    axes.set_ylabel(label)
    whole_ticks(axes.xaxis)


def trainings_of(trainings: Mapping[str, Sequence[Epoch]]) -> Figure:
    """Loss, accuracy and learning rate over the epochs of all trainings, one after the other."""
    total = sum(map(len, trainings.values()))
    return training_figure(trainings, min(10.0, max(_WIDTH, 0.06 * total)))


def fused(fusions: Sequence[Mapping[str, Any]], baseline: float) -> Figure:
    """Accuracy of the fused networks over the number of devices."""
    return _panel(lambda axes: draw_fused(axes, fusions, baseline))


def split_times(fusions: Sequence[Mapping[str, Any]]) -> Figure:
    """Milliseconds an image over the number of devices."""
    return _panel(lambda axes: draw_times(axes, fusions), columns=2)


def runs_against(runs: Sequence[ComparedRun], share: str) -> Figure:
    """Test accuracy of runs against a share: macs_share, params_share or remaining_weights."""

    def draw(axes: Axes) -> None:
        draw_runs(axes, runs, share)
        axes.set_ylabel("test top-1, %")
        if any(run.top1_before is not None for run in runs):
            hollow: dict[str, Any] = {"markeredgecolor": "0.3", "markerfacecolor": "none"}
            axes.plot([], [], "o", label="unpruned", **hollow)

    return _panel(draw, columns=2)


def _panel(draw: Callable[[Axes], object], columns: int = 3) -> Figure:
    """A figure of one panel with its legend beneath, since points may lie anywhere."""
    figure = new_figure(_WIDTH, 3.7)
    axes = figure.subplots()
    draw(axes)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(figure, axes, columns)
    return figure


def _plain(draw: Callable[[Axes], object]) -> Figure:
    figure = new_figure(_WIDTH, 3.9)
    draw(figure.subplots())
    return figure


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def shortened(name: str) -> str:
    """A name with its middle left out where it is long, since its ends tell names apart."""
    half = (_LONGEST - 1) // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}"
