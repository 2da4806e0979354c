"""Which stages of a run stand, from its directory alone: not opened, not locked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fastprune.config import RunConfig
from fastprune.errors import ConfigError
from fastprune.files import sha256_of
from fastprune.run.paths import RunPaths
from fastprune.run.stages import ENSEMBLE_STAGES, STAGES, StageRecord, stage_key, stored_record

__all__ = ["goes_on_by", "stages_of", "standing_records", "standing_report"]

_FROM = {"prune": ("plan",), "finetune": ("prune", "plan")}
"""Stages that follow from earlier ones alone, and from which."""

_MEASURED = {"pruned": "prune", "finetuned": "finetune"}
"""Accuracies of a report, and the stages that measured them."""


def stages_of(config: RunConfig) -> tuple[str, ...]:
    """The stages of a run, in their order."""
    return ENSEMBLE_STAGES if config.method.ensemble else STAGES


def standing_records(paths: RunPaths, stages: Sequence[str]) -> dict[str, StageRecord]:
    """What each stage left, up to the first that is missing or of what another has replaced."""
    records: dict[str, StageRecord] = {}
    for stage in stages:
        record = stored_record(paths.record_file(stage))
        inputs = _FROM.get(stage)
        if record is not None and inputs is not None:
            key = stage_key(stage, [records[name].digest for name in inputs])
            record = record if record.inputs == key else None
        if record is None:
            break
        records[stage] = record
    return records


def standing_report(paths: RunPaths, records: Mapping[str, StageRecord]) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        ConfigError: it is not the one the run wrote last.
    """
    file = paths.report
    if not file.is_file() or sha256_of(file) != records["report"].files.get(file.name):
        raise ConfigError(f"{file}: damaged, or of another run; the run's command writes it again")
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "fuse" in records:
        found = records["fuse"].results["fusions"].values()
        same = [each["test"] for each in report["fusions"]] == [each["test"] for each in found]
    else:
        same = all(
            report["accuracy"][name] == records[stage].results.get("metrics")
            for name, stage in _MEASURED.items()
        )
    if not same:
        raise ConfigError(f"{file}: of an earlier plan; the run's command writes it again")
    return report


def goes_on_by(paths: RunPaths) -> str:
    """A command by which a run goes on."""
    path = paths.path
    return shlex.join(["fastprune", "run", f"{path}/config.yaml", "--out", str(path)])
