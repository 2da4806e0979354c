"""The epochs that the trainings of a run left, finished or not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fastprune.errors import CheckpointError
from fastprune.run.paths import RunPaths
from fastprune.run.stages import ENSEMBLE_STAGES, STAGES
from fastprune.training._store import METRICS
from fastprune.training.evaluator import CANDIDATES

__all__ = ["Epoch", "read_trainings"]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is drawn of a line of ``metrics.jsonl``; see `fastprune.training.EpochRecord`."""

    epoch: int
    train_loss: float
    train_top1: float
    validation_loss: float | None
    validation_top1: float | None
    learning_rate: float


_EPOCH = TypeAdapter(Epoch)


def read_trainings(run: RunPaths) -> dict[str, tuple[Epoch, ...]]:
    """The epochs of every training, by its name, in the order of training.

    Those of a search's candidates are left out: its trials say what came of them. An ensemble's
    experts are runs of their own.

    Raises:
        CheckpointError: a line is damaged.
    """
    found = {}
    for stage in dict.fromkeys((*STAGES, *ENSEMBLE_STAGES)):
        folder = run.work_folder(stage)
        for file in sorted(folder.rglob(METRICS), key=_naturally):
            inside = file.parent.relative_to(folder).parts
            epochs = _epochs(file)
            if epochs and CANDIDATES not in inside:
                found[_name(stage, inside)] = epochs
    return found


def _name(stage: str, inside: tuple[str, ...]) -> str:
    # The folders of an ensemble's heads are numbers of devices.
    return f"head, {inside[0]} devices" if stage == "fuse" else " ".join(inside or (stage,))


def _epochs(file: Path) -> tuple[Epoch, ...]:
    # What follows the last line's end is the part of a line.
    lines = file.read_bytes().split(b"\n")[:-1]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_EPOCH.validate_json(line))
        except ValidationError:
            raise CheckpointError(f"{file}: line {number}: not an epoch of a training") from None
    return tuple(found)


def _naturally(file: Path) -> list[tuple[int, str]]:
    """Orders state-2 before state-10."""
    parts = re.split(r"([0-9]+)", str(file))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
