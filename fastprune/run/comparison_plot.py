"""The picture of a comparison: accuracy against what the networks cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastprune.run.plots import COLORS, new_figure, percent_ticks, text_of, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastprune.run.compared_run import ComparedRun

__all__ = ["draw_runs", "plot_comparison"]

_MARKERS = "osD^vPX*"


def plot_comparison(path: Path, runs: Sequence[ComparedRun]) -> None:
    """Test accuracy against shares of MACs, of params and, for lottery tickets, of weights.

    A filled point a run; a curve over the states of those that have several; an open point for
    the unpruned network. States without test accuracy are drawn dashed, by validation accuracy.

    Args:
        path: of the PNG file.
        runs: at least one.
    """
    ticket = any(run.by_state for run in runs)
    rows = -(-(len(runs) + 2) // 3)
    figure = new_figure(15 if ticket else 10.5, 4.2 + 0.22 * rows)
    panels = figure.subplots(1, 3 if ticket else 2, sharey=True)
    # A legend beneath, since points may lie anywhere.
    draw_runs(panels[0], runs, "macs_share")
    draw_runs(panels[1], runs, "params_share")
    panels[0].set_ylabel("test top-1, %")
    if ticket:
        draw_runs(panels[2], runs, "remaining_weights")
    handles, labels = panels[0].get_legend_handles_labels()
    if any(run.top1_before is not None for run in runs):
        handles += panels[0].plot([], [], "o", markeredgecolor="0.3", markerfacecolor="none")
        labels.append("unpruned")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    write_figure(path, figure)


_SHARES = {
    "macs_share": "MACs, % of the unpruned network's",
    "params_share": "parameters, % of the unpruned network's",
    "remaining_weights": "prunable weights left, %",
}


def draw_runs(axes: Axes, runs: Sequence[ComparedRun], share: str) -> None:
    """Test accuracy of runs against a share: macs_share, params_share or remaining_weights."""
    axes.set_xlabel(_SHARES[share])
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if share == "remaining_weights":
        axes.set_xscale("log")
        percent_ticks(axes.xaxis)
    for number, run in enumerate(runs):
        color, marker = COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)]
        where = getattr(run, share)
        if where is None:
            continue
        tested = any(point.test_top1 is not None for point in run.by_state)
        curve = [
            (100 * getattr(point, share.removesuffix("_share")), top1)
            for point in run.by_state
            if (top1 := point.test_top1 if tested else point.validation_top1) is not None
        ]
        axes.plot(
            [x for x, _ in curve],
            [y for _, y in curve],
            color=color,
            marker=marker,
            markersize=3,
            linewidth=1.1,
            linestyle="solid" if tested else "dashed",
        )
        name = run.name
        if sum(other.name == name for other in runs) > 1:
            # An ensemble's rows.
            name = f"{name}, {run.variant}"
        if curve and not tested:
            name += " (dashed: validation)"
        axes.plot(
            [100 * where],
            [run.top1_after],
            color=color,
            marker=marker,
            markersize=8,
            linestyle="none",
            label=text_of(name),
        )
        if run.top1_before is not None:
            axes.plot(
                [100],
                [run.top1_before],
                color=color,
                marker="o",
                markersize=6,
                markerfacecolor="none",
                linestyle="none",
            )
