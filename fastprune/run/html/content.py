"""What one run directory holds, read once, for all sections of a report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastprune.config import RunConfig
from fastprune.errors import ConfigError
from fastprune.graph import PruningPlan
from fastprune.methods._grouping import Grouping
from fastprune.methods._scales import SCALES, ScaleRecord, read_scales
from fastprune.methods._states import StateRecord
from fastprune.methods._trials import TrialLog, front
from fastprune.run.compared_run import ComparedRun, printable, read_finished
from fastprune.run.directory import saved_config
from fastprune.run.figures import (
    count_trials,
    file_of_plan,
    plan_of,
    result_of,
    standing_file,
    states_of,
)
from fastprune.run.paths import RunPaths, check_run_directory
from fastprune.run.plots import read_trials
from fastprune.run.stages import StageRecord
from fastprune.run.standing import goes_on_by, stages_of, standing_records, standing_report
from fastprune.run.trainings import Epoch, read_trainings

__all__ = ["RunContent", "read_run"]


@dataclass(frozen=True, slots=True)
class RunContent:
    """What a run left so far; empty or None is what it has not come to.

    Attributes:
        name: the folder's, in Unicode.
        paths: where its files are.
        config: what was asked.
        environment: as ``environment.json`` has it.
        records: of the stages that stand.
        following: the stage that is next; None of a finished run.
        report: as ``report.json`` has it, of a finished run.
        compared: its rows of a comparison, of a finished run; of an ensemble one for each number
            of devices.
        graph: as ``graph.json`` has it.
        plan: the pruning plan.
        trainings: the epochs of each.
        trials: of a search, by number; as plain data.
        front: those that no other equals with fewer MACs.
        states: of a lottery ticket.
        scales: batch norm scales in the course of sparse training.
        classes: rows of ``classes.csv``.
        grouping: which classes belong together, of an ensemble.
        similarity: ``[K, K]``, how alike any two classes are, of an ensemble.
    """

    name: str
    paths: RunPaths
    config: RunConfig
    environment: Mapping[str, Any]
    records: Mapping[str, StageRecord]
    following: str | None
    report: Mapping[str, Any] | None
    compared: tuple[ComparedRun, ...]
    graph: Mapping[str, Any] | None
    plan: PruningPlan | None
    trainings: Mapping[str, tuple[Epoch, ...]]
    trials: tuple[Mapping[str, Any], ...]
    front: tuple[Mapping[str, Any], ...]
    states: tuple[StateRecord, ...]
    scales: tuple[ScaleRecord, ...]
    classes: tuple[Mapping[str, str], ...]
    grouping: Grouping | None
    similarity: npt.NDArray[np.float64] | None

    @property
    def groups(self) -> dict[str, int]:
        """Channels of the unpruned network's groups."""
        found = () if self.graph is None else self.graph["groups"]
        return {group["name"]: group["channels"] for group in found}

    @property
    def widths(self) -> dict[str, int]:
        """Channels that the plan keeps, of all groups; none without a plan."""
        if self.plan is None:
            return {}
        return self.groups | self.plan.widths()

    @property
    def accuracy(self) -> dict[str, dict[str, float]]:
        """Test accuracies, by what was measured, in the order in which it was."""
        stages = {
            "baseline": "baseline",
            "plan": "trained_by_method",
            "prune": "pruned",
            "finetune": "finetuned",
        }
        found = {key: self.results(stage).get("metrics") for stage, key in stages.items()}
        return {key: metrics for key, metrics in found.items() if metrics is not None}

    @property
    def cost(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the unpruned and of the pruned network; empty before it is known."""
        # A method may train an unpruned network of its own, which the report was made of.
        if self.report is not None and not self.config.method.ensemble:
            return dict(self.report["cost"]["unpruned"]), dict(self.report["cost"]["pruned"])
        return self.results("baseline").get("cost", {}), self.results("prune").get("cost", {})

    @property
    def latency(self) -> dict[str, Any]:
        """Of the unpruned and the pruned network, as the report has it; empty if not measured."""
        return dict((self.report or {}).get("latency") or {})

    @property
    def notes(self) -> dict[str, Any]:
        """What the method noted."""
        return dict(self.results("plan").get("notes", {}))

    @property
    def command(self) -> str:
        """What repeats the run, or goes on with it."""
        command = goes_on_by(self.paths) if self.report is None else self.report["command"]
        return printable(command)

    def results(self, stage: str) -> dict[str, Any]:
        """What a stage found; empty before it is done."""
        record = self.records.get(stage)
        return {} if record is None else record.results


def read_run(path: Path) -> RunContent:
    """What a run directory holds; its files are only read, and the run may go on meanwhile.

    Raises:
        ConfigError: it is no run directory, is damaged, or holds nothing to report yet.
        CheckpointError: a line of a file is damaged.
    """
    check_run_directory(path)
    paths, config = RunPaths(path), saved_config(path)
    stages = stages_of(config)
    records = standing_records(paths, stages)
    finished = len(records) == len(stages)
    plan = plan_of(paths) if "plan" in records else None
    trials = file_of_plan(paths.trials, paths, plan)
    whole = trials is not None and count_trials(trials) > 0
    report, compared = _finished(paths, records) if finished else (None, ())
    grouping, similarity = _grouping(paths) if "group" in records else (None, None)
    found = RunContent(
        name=printable(path.name or path.resolve().name),
        paths=paths,
        config=config,
        environment=_plain(paths.environment),
        records=records,
        following=None if finished else stages[len(records)],
        report=report,
        compared=compared,
        graph=result_of(paths, "baseline", paths.graph) if "baseline" in records else None,
        plan=plan,
        trainings=read_trainings(paths),
        trials=tuple(read_trials(trials)) if trials is not None and whole else (),
        front=tuple(front(TrialLog(trials, read_only=True))) if trials is not None else (),
        states=states_of(paths, plan),
        scales=read_scales(paths.work_folder("plan") / SCALES),
        classes=_rows(paths.classes) if finished else (),
        grouping=grouping,
        similarity=similarity,
    )
    if not (found.records or found.trainings):
        raise ConfigError(f"{path}: holds nothing to report yet, not one epoch of a training")
    return found


_NEEDED = ("command", "normalization", "pipelines", "warnings")
"""What sections take from any report, beside what comparing runs does."""


def _finished(
    paths: RunPaths, records: Mapping[str, StageRecord]
) -> tuple[dict[str, Any], tuple[ComparedRun, ...]]:
    """The report, and the run's rows of a comparison."""
    report = standing_report(paths, records)
    try:
        for name in _NEEDED if "fuse" in records else (*_NEEDED, "narrowest"):
            report[name]
        return report, tuple(read_finished(paths.path)[0])
    except KeyError as error:
        raise ConfigError(
            f"{paths.report}: of another version of fastprune: it has no {error}"
        ) from None


def _grouping(paths: RunPaths) -> tuple[Grouping, npt.NDArray[np.float64]]:
    matrix = standing_file(paths, "group", paths.similarity)
    stored = result_of(paths, "group", paths.grouping)
    if matrix is None or stored is None:
        raise ConfigError(f"{paths.grouping}: removed meanwhile; is the run going on?")
    return Grouping.from_json(stored), np.load(matrix)


def _plain(file: Path) -> dict[str, Any]:
    """A file that is for people; what of it is lost or damaged is no reason to report nothing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(file: Path) -> tuple[dict[str, str], ...]:
    if not file.is_file():
        return ()
    with file.open(encoding="utf-8", newline="") as stream:
        return tuple(csv.DictReader(stream))
