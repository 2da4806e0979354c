"""The stages of runs, and the record that each leaves once it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fastprune.files import digest_of, read_json, write_json

__all__ = [
    "ENSEMBLE_STAGES",
    "STAGES",
    "StageRecord",
    "stage_key",
    "stored_record",
    "write_record",
]

STAGES = ("baseline", "plan", "prune", "finetune", "report")
"""Of a run that prunes one network."""

ENSEMBLE_STAGES = ("baseline", "group", "experts", "fuse", "infer", "report")
"""Of a run that makes several networks and joins them."""

_DIGEST = "digest"

_FORMAT = 1
"""Raised when a stage computes something else from the same inputs."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a finished stage left.

    Attributes:
        stage: its name.
        inputs: digest of all that it was made from.
        results: figures and facts; plain data, the same on every machine-equal repetition.
        files: name of each file it wrote -> SHA-256.
        seconds: time it took, in all processes that worked on it but those that were killed.
        kills: how many were.
        bad_images: image files that had been left out by its end, in that process.
    """

    stage: str
    inputs: str
    results: dict[str, Any]
    files: dict[str, str]
    seconds: float
    kills: int = 0
    bad_images: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of what the stage made, for the next stage's inputs.

        Neither its time nor the bad images enter it: both depend on what ran in one process.
        """
        return digest_of([self.stage, self.inputs, self.results, self.files])


_RECORD = TypeAdapter(StageRecord)


def stage_key(stage: str, inputs: Any) -> str:
    """Digest of what a stage is made from, as its record keeps it."""
    return digest_of([stage, _FORMAT, inputs])


def stored_record(file: Path) -> StageRecord | None:
    """The record in a file, whether or not its result still stands; None where it is none, or
    was altered.
    """
    content = read_json(file)
    digest = content.pop(_DIGEST, None) if isinstance(content, dict) else None
    try:
        record = _RECORD.validate_python(content)
    except ValidationError:
        return None
    return record if record.digest == digest else None


def write_record(file: Path, record: StageRecord) -> None:
    """Puts a record in a file."""
    write_json(file, {**asdict(record), _DIGEST: record.digest})
