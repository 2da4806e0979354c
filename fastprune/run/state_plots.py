"""Pictures of the states of a lottery ticket."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastprune.methods._states import StateRecord
from fastprune.run.plots import (
    COLORS,
    new_figure,
    percent_ticks,
    text_of,
    whole_ticks,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_accuracy",
    "draw_left",
    "penalty_figure",
    "plot_penalty",
    "plot_state_channels",
    "plot_states",
    "state_channels_figure",
]

_MOST_NUMBERS = 16
"""States up to which the kept channels are written into their cells."""


def plot_states(path: Path, states: Sequence[StateRecord]) -> None:
    """What every state has left, and its accuracy.

    Args:
        path: of the PNG file.
        states: at least one, in their order.
    """
    figure = new_figure(11, 4.4)
    left, accuracy = figure.subplots(1, 2)
    draw_left(left, states)
    draw_accuracy(accuracy, states)
    write_figure(path, figure)


def draw_left(axes: Axes, states: Sequence[StateRecord]) -> None:
    """The shares of weights and channels that every state has left; at least one state."""
    _lines(
        axes,
        {
            "weights": [_percent(s.remaining_weights, s.prunable_weights) for s in states],
            "channels": [_percent(s.channels, s.full_channels) for s in states],
        },
    )
    axes.set_yscale("log")
    percent_ticks(axes.yaxis)
    axes.set_ylabel("left of the unpruned network's, %")
    _over_states(axes, states)


def draw_accuracy(axes: Axes, states: Sequence[StateRecord]) -> None:
    """The accuracies of every state; at least one state."""
    _lines(
        axes,
        {
            "test": [s.test_top1 for s in states],
            "validation, best epoch": [s.best_validation_top1 for s in states],
            "validation, last epoch": [s.validation_top1 for s in states],
            "validation, penalised weights cut": [s.cut_top1 for s in states],
        },
    )
    axes.set_ylabel("top-1, %")
    _over_states(axes, states)


def _over_states(axes: Axes, states: Sequence[StateRecord]) -> None:
    few = states[:: -(-len(states) // 9)]
    marks = [f"{s.state}\n{_percent(s.remaining_weights, s.prunable_weights):.3g} %" for s in few]
    axes.set_xticks([s.state for s in few], marks, fontsize=8)
    axes.set_xlabel("state, and prunable weights left in it")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.lines:
        # Beneath the axes, since curves may lie anywhere.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8)


def plot_state_channels(
    path: Path, full: Mapping[str, int], states: Sequence[StateRecord]
) -> None:
    """The share of every group's channels that each state keeps, a cell each.

    Args:
        path: of the PNG file.
        full: channels of the unpruned network's groups; one that a state does not name is whole.
        states: at least one, in their order.
    """
    write_figure(path, state_channels_figure(full, states))


def state_channels_figure(full: Mapping[str, int], states: Sequence[StateRecord]) -> Figure:
    """What `plot_state_channels` draws."""
    names = list(full)
    cells = [
        [_percent(state.widths.get(name, full[name]), full[name]) for state in states]
        for name in names
    ]
    figure = new_figure(max(6.0, 0.42 * len(states) + 3), max(3.0, 0.2 * len(names) + 1.4))
    axes = figure.subplots()
    image = axes.imshow(cells, aspect="auto", cmap="cividis", vmin=0, vmax=100)
    axes.set_yticks(range(len(names)), [text_of(name) for name in names], fontsize=7)
    few = states[:: -(-len(states) // 30)]
    axes.set_xticks([states.index(s) for s in few], [str(s.state) for s in few])
    axes.set_xlabel("state")
    axes.set_ylabel("channel group")
    if len(states) <= _MOST_NUMBERS:
        for row, name in enumerate(names):
            for column, state in enumerate(states):
                dark = cells[row][column] < 50
                kept = str(state.widths.get(name, full[name]))
                color = "white" if dark else "black"
                axes.text(column, row, kept, ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(image, label="channels kept, %")
    return figure


def plot_penalty(path: Path, states: Sequence[StateRecord]) -> None:
    """Strength of the growing penalty in the course of every state.

    Args:
        path: of the PNG file.
        states: in their order; at least one with a penalty.
    """
    write_figure(path, penalty_figure(states))


def penalty_figure(states: Sequence[StateRecord]) -> Figure:
    """What `plot_penalty` draws."""
    last = max(epoch for state in states for epoch, _ in state.strengths) or 1.0
    figure = new_figure(max(6.0, min(14.0, 0.6 * len(states) + 3)), 3.6)
    axes = figure.subplots()
    for state in states:
        if state.strengths:
            places = [state.state + epoch / last for epoch, _ in state.strengths]
            strengths = [strength for _, strength in state.strengths]
            # Nothing between two states: a strength begins anew in each.
            axes.step(places, strengths, where="post", color=COLORS[0], linewidth=1.4)
    axes.set_xlim(0, len(states))
    whole_ticks(axes.xaxis)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_xlabel(f"state; from one to the next, {last:g} epochs")
    axes.set_ylabel("penalty strength r, added to the\ngradient as r · weight")
    return figure


def _lines(axes: Axes, curves: dict[str, list[Any]]) -> None:
    """A curve a name over the states, of those that are known anywhere."""
    markers = "osD^"
    for number, (name, values) in enumerate(curves.items()):
        if any(value is not None for value in values):
            known = [math.nan if value is None else value for value in values]
            axes.plot(
                range(len(known)),
                known,
                color=COLORS[number],
                marker=markers[number],
                markersize=4,
                linewidth=1.2,
                label=name,
            )


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0
