"""``fastprune plot``: the figures of a run, from what it holds, finished or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastprune.errors import ConfigError
from fastprune.graph import PruningPlan
from fastprune.methods._states import StateRecord, read_states
from fastprune.methods._trials import TrialLog
from fastprune.run.directory import stored_record
from fastprune.run.paths import RunPaths, check_run_directory
from fastprune.run.plots import plot_channels, plot_search, plot_training
from fastprune.run.state_plots import plot_penalty, plot_state_channels, plot_states
from fastprune.run.trainings import read_trainings

__all__ = ["Drawing", "draw_run", "state_drawings"]

Drawing = tuple[Path, Callable[[Path], None]]
"""A file, and what draws it."""


def draw_run(path: Path, out: Path | None = None) -> list[Path]:
    """Draws every figure that a run, finished or not, holds the figures of.

    A run that goes on meanwhile is not disturbed: its files are only read.

    Args:
        path: the run directory.
        out: the folder they go to, made if need be; by default the run directory.

    Returns:
        The files, each written whole.

    Raises:
        ConfigError: it is no run directory, has nothing to draw yet, or ``out`` cannot be written.
        CheckpointError: a line of a file is damaged.
    """
    check_run_directory(path)
    run, folder = RunPaths(path), RunPaths(path if out is None else out)
    # All is read before anything is drawn.
    trainings, full = read_trainings(run), _groups(run)
    planned = stored_record(run.record_file("plan")) is not None
    trials, states = _of_plan(run.trials, run, planned), _of_plan(run.states, run, planned)
    records = read_states(states) if states is not None else ()
    drawings: list[Drawing] = []
    if trainings:
        drawings.append((folder.training_plot, lambda file: plot_training(file, trainings)))
    if trials is not None and len(TrialLog(trials, read_only=True)):
        drawings.append((folder.search_plot, lambda file: plot_search(file, trials)))
    if planned and run.plan.is_file():
        plan = PruningPlan.from_json(json.loads(run.plan.read_text(encoding="utf-8")))
        drawings.append(
            (folder.channels_plot, lambda file: plot_channels(file, full, plan.widths()))
        )
    drawings += state_drawings(records, full, folder)
    if not drawings:
        raise ConfigError(f"{path}: holds nothing to draw yet, not one epoch of a training")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        for file, draw in drawings:
            draw(file)
    except OSError as error:
        raise ConfigError(f"{folder.path}: cannot write there: {error.strerror}") from None
    return [file for file, _ in drawings]


def state_drawings(
    states: Sequence[StateRecord], full: Mapping[str, int], folder: RunPaths
) -> list[Drawing]:
    """The figures that can be drawn of these states; none of no state.

    Args:
        states: in their order.
        full: channels of the unpruned network's groups.
        folder: that the figures go to.
    """
    drawings: list[Drawing] = []
    if states:
        drawings.append((folder.states_plot, lambda file: plot_states(file, states)))
        drawings.append(
            (folder.state_channels_plot, lambda file: plot_state_channels(file, full, states))
        )
    if any(record.strengths for record in states):
        drawings.append((folder.penalty_plot, lambda file: plot_penalty(file, states)))
    return drawings


def _of_plan(file: Path, run: RunPaths, planned: bool) -> Path | None:
    """A file of the method: beside the results once the plan is made, and until then its own."""
    under_way = run.work_folder("plan") / file.name
    return next((found for found in (file, under_way)[not planned :] if found.is_file()), None)


def _groups(run: RunPaths) -> dict[str, int]:
    """Channels of the unpruned network's groups; none before its baseline is done."""
    if not run.graph.is_file():
        return {}
    groups = json.loads(run.graph.read_text(encoding="utf-8"))["groups"]
    return {group["name"]: group["channels"] for group in groups}
