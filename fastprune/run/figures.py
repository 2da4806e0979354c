"""``fastprune plot``: the figures of a run, from what it holds, finished or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastprune.errors import CheckpointError, ConfigError
from fastprune.files import sha256_of
from fastprune.graph import PruningPlan
from fastprune.methods._grouping import Grouping
from fastprune.methods._states import StateRecord, read_states
from fastprune.methods._trials import TrialLog
from fastprune.run.ensemble_plots import plot_devices
from fastprune.run.grouping_plots import plot_dendrogram, plot_similarity
from fastprune.run.paths import RunPaths, check_run_directory
from fastprune.run.plots import plot_channels, plot_search, plot_training
from fastprune.run.stages import stored_record
from fastprune.run.state_plots import plot_penalty, plot_state_channels, plot_states
from fastprune.run.trainings import read_trainings

__all__ = [
    "Drawing",
    "count_trials",
    "draw_run",
    "file_of_plan",
    "plan_of",
    "result_of",
    "standing_file",
    "state_drawings",
    "states_of",
]

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
        ConfigError: it is no run directory, is damaged or has nothing to draw yet; ``out`` cannot
            be written.
        CheckpointError: a line of a file is damaged.
    """
    check_run_directory(path)
    run, folder = RunPaths(path), RunPaths(path if out is None else out)
    # All is read before anything is drawn.
    trainings, full, plan = read_trainings(run), groups_of(run), plan_of(run)
    trials, records = file_of_plan(run.trials, run, plan), states_of(run, plan)
    drawings: list[Drawing] = []
    if trainings:
        drawings.append((folder.training_plot, lambda file: plot_training(file, trainings)))
    if trials is not None and count_trials(trials):
        drawings.append((folder.search_plot, lambda file: plot_search(file, trials)))
    if plan is not None:
        widths = plan.widths()
        drawings.append((folder.channels_plot, lambda file: plot_channels(file, full, widths)))
    drawings += state_drawings(records, full, folder)
    drawings += _ensemble_drawings(run, folder)
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
        full: channels of the unpruned network's groups; without any, weights alone can go.
        folder: that the figures go to.
    """
    drawings: list[Drawing] = []
    if states:
        drawings.append((folder.states_plot, lambda file: plot_states(file, states)))
    if states and full:
        drawings.append(
            (folder.state_channels_plot, lambda file: plot_state_channels(file, full, states))
        )
    if any(record.strengths for record in states):
        drawings.append((folder.penalty_plot, lambda file: plot_penalty(file, states)))
    return drawings


def _ensemble_drawings(run: RunPaths, folder: RunPaths) -> list[Drawing]:
    """Of a run of several joined networks; none of another."""
    drawings: list[Drawing] = []
    stored, similarity = (
        result_of(run, "group", run.grouping),
        standing_file(run, "group", run.similarity),
    )
    if stored is not None and similarity is not None:
        grouping, matrix = Grouping.from_json(stored), np.load(similarity)
        drawings += [
            (folder.similarity_plot, lambda file: plot_similarity(file, matrix, grouping)),
            (folder.dendrogram, lambda file: plot_dendrogram(file, grouping)),
        ]
        report = result_of(run, "report", run.report)
        if report is not None:
            drawings.append((folder.devices_plot, lambda file: plot_devices(file, report)))
    return drawings


def groups_of(run: RunPaths) -> dict[str, int]:
    """Channels of the unpruned network's groups; none before the baseline is done."""
    facts = result_of(run, "baseline", run.graph)
    return {} if facts is None else {group["name"]: group["channels"] for group in facts["groups"]}


def plan_of(run: RunPaths) -> PruningPlan | None:
    """The plan, once it is made."""
    plan = result_of(run, "plan", run.plan)
    return None if plan is None else PruningPlan.from_json(plan)


def result_of(run: RunPaths, stage: str, file: Path) -> Any:
    """The content of a stage's JSON file; None before the stage is done.

    Raises:
        ConfigError: it is not what the stage wrote.
    """
    standing = standing_file(run, stage, file)
    return None if standing is None else json.loads(standing.read_text(encoding="utf-8"))


def standing_file(run: RunPaths, stage: str, file: Path) -> Path | None:
    """A stage's file; None before the stage is done.

    Raises:
        ConfigError: it is not what the stage wrote.
    """
    record = stored_record(run.record_file(stage))
    if record is None:
        return None
    if not file.is_file() or sha256_of(file) != record.files.get(file.name):
        raise ConfigError(f"{file}: missing or damaged; the run's command makes it again")
    return file


def file_of_plan(file: Path, run: RunPaths, plan: PruningPlan | None) -> Path | None:
    """A method's file: its own, and beside the results once there is a plan; None for neither."""
    own = run.work_folder("plan") / file.name
    places = (own,) if plan is None else (file, own)
    return next((place for place in places if place.is_file()), None)


def states_of(run: RunPaths, plan: PruningPlan | None) -> tuple[StateRecord, ...]:
    file = file_of_plan(run.states, run, plan)
    return () if file is None else read_states(file)


def count_trials(file: Path) -> int:
    """How many trials a file has.

    Raises:
        CheckpointError: a line is none.
    """
    whole, lines = len(TrialLog(file, read_only=True)), file.read_bytes().count(b"\n")
    if whole < lines:
        raise CheckpointError(f"{file}: line {whole + 1}: not a trial, or one a second time")
    return whole
