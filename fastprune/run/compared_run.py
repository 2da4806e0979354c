"""A finished run as a row beside others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastprune.config import RunConfig
from fastprune.errors import CheckpointError, ConfigError
from fastprune.methods._states import StateRecord, read_states
from fastprune.run.directory import saved_config
from fastprune.run.paths import RunPaths, check_run_directory
from fastprune.run.stages import StageRecord
from fastprune.run.standing import goes_on_by, stages_of, standing_records, standing_report

__all__ = ["COLUMNS", "ComparedRun", "StatePoint", "network_of", "printable", "read_finished"]

_VARIANTS = ("variant", "criterion")
"""Notes of a method that say which of its kinds it was."""


@dataclass(frozen=True, slots=True)
class StatePoint:
    """A state of a lottery ticket; costs are shares, 0 to 1, of the unpruned network's.

    Attributes:
        state: from 0 on.
        remaining_weights: of the prunable ones.
        channels: of all convolutions'.
        macs: multiply-accumulates.
        params: parameters.
        test_top1: percent; None where the state was not measured on test images.
        validation_top1: percent, of its best epoch; None without validation images.
    """

    state: int
    remaining_weights: float
    channels: float
    macs: float
    params: float
    test_top1: float | None
    validation_top1: float | None


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run's row; docs/runs.md says what each column is.

    Shares are of the unpruned network, 0 to 1; accuracies are percent of the test images.
    """

    name: str
    method: str
    variant: str | None
    network: str
    dataset: str
    seed: int
    top1_before: float | None
    top1_after: float
    macs: int
    macs_share: float
    params: int
    params_share: float
    channels: int
    channels_share: float
    remaining_weights: float | None
    states: int | None
    seconds: float
    path: str
    by_state: tuple[StatePoint, ...]


COLUMNS = tuple(f.name for f in fields(ComparedRun) if f.name not in ("path", "by_state"))
"""Of ``comparison.csv``, in their order."""


def read_finished(path: Path) -> tuple[list[ComparedRun], list[str]]:
    """A run's row, of an ensemble one for each number of devices, and what is to be said of it.

    Raises:
        ConfigError: it is no run, not finished, or damaged; in one line.
    """
    check_run_directory(path)
    config, paths = saved_config(path), RunPaths(path)
    report = standing_report(paths, _records(paths, stages_of(config)))
    if config.method.ensemble:
        name = printable(path.name or path.resolve().name)
        said = f"{name}: MACs, params and channels are of the experts of all devices together"
        return _fused_rows(path, config, report), [said]
    cost, kept, accuracy = report["cost"]["pruned"], report["cost"]["kept"], report["accuracy"]
    before = accuracy["baseline"] or accuracy["trained_by_method"]
    after = accuracy["finetuned"] or accuracy["pruned"]
    states, notes = _states(paths)
    full = report["cost"]["unpruned"]
    points = tuple(_point(state, full) for state in states)
    variant = next((report["notes"][name] for name in _VARIANTS if name in report["notes"]), None)
    row = ComparedRun(
        name=printable(path.name or path.resolve().name),
        method=report["method"],
        variant=variant,
        network=network_of(config),
        dataset=report["dataset"],
        seed=report["seed"],
        top1_before=None if before is None else before["top1"],
        top1_after=after["top1"],
        macs=cost["macs"],
        macs_share=kept["macs"],
        params=cost["params"],
        params_share=kept["params"],
        channels=cost["channels"],
        channels_share=kept["channels"],
        remaining_weights=points[-1].remaining_weights if points else None,
        states=len(points) or None,
        seconds=round(sum(report["seconds"].values()), 3),
        path=printable(str(path)),
        by_state=points,
    )
    return [row], notes


def network_of(config: RunConfig) -> str:
    """A network and its options, in words."""
    options = ", ".join(f"{key}={value}" for key, value in config.model.options.items())
    return config.model.name + (f" ({options})" if options else "")


def _fused_rows(path: Path, config: RunConfig, report: dict[str, Any]) -> list[ComparedRun]:
    """A row for each number of devices: experts without their heads, and the head, together."""
    full = report["cost"]["unpruned"]
    experts = {expert["run"]: expert for expert in report["experts"]}
    rows = []
    for fusion in report["fusions"]:
        parts = [experts[run]["cost"] for run in fusion["experts"]]
        cost = {name: sum(part[name] for part in parts) for name in ("macs", "params", "channels")}
        cost["params"] += fusion["head"]["params"]
        shares = {name: round(value / full[name], 6) for name, value in cost.items()}
        rows.append(
            ComparedRun(
                name=printable(path.name or path.resolve().name),
                method=report["method"],
                variant=f"{fusion['devices']} devices",
                network=network_of(config),
                dataset=report["dataset"],
                seed=report["seed"],
                top1_before=report["accuracy"]["baseline"]["top1"],
                top1_after=fusion["test"]["top1"],
                macs=cost["macs"],
                macs_share=shares["macs"],
                params=cost["params"],
                params_share=shares["params"],
                channels=cost["channels"],
                channels_share=shares["channels"],
                remaining_weights=None,
                states=None,
                seconds=round(sum(report["seconds"].values()), 3),
                path=printable(str(path)),
                by_state=(),
            )
        )
    return rows


def _records(paths: RunPaths, stages: Sequence[str]) -> dict[str, StageRecord]:
    """What each stage left.

    Raises:
        ConfigError: one is missing, or made from what another has replaced since.
    """
    records = standing_records(paths, stages)
    if len(records) < len(stages):
        stage, again = stages[len(records)], goes_on_by(paths)
        raise ConfigError(f"{paths.path}: not finished, {stage} is next; it goes on by: {again}")
    return records


def _states(paths: RunPaths) -> tuple[tuple[StateRecord, ...], list[str]]:
    if not paths.states.is_file():
        return (), []
    try:
        return read_states(paths.states), []
    except CheckpointError as error:
        return (), [f"compared without its states: {error}"]


def _point(state: StateRecord, full: dict[str, int]) -> StatePoint:
    best = state.best_validation_top1
    return StatePoint(
        state=state.state,
        remaining_weights=state.remaining_weights / state.prunable_weights,
        channels=state.channels / state.full_channels,
        macs=state.macs / full["macs"],
        params=state.params / full["params"],
        test_top1=state.test_top1,
        validation_top1=state.validation_top1 if best is None else best,
    )


def printable(name: str) -> str:
    """A file's name in Unicode; odd bytes and control characters as Python escapes them."""
    plain = name.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in plain)
