"""``scales.jsonl``: the batch norm scales γ in the course of sparse training, a line an epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from fastprune.errors import CheckpointError
from fastprune.files import write_atomically
from fastprune.training import EpochRecord

__all__ = ["QUANTILES", "SCALES", "ScaleLog", "ScaleRecord", "read_scales"]

SCALES = "scales.jsonl"
"""Name of the file in the method's directory."""

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""That a line has of |γ|: from the smallest to the largest."""


@dataclass(frozen=True, slots=True)
class ScaleRecord:
    """The scales at the end of an epoch.

    Attributes:
        epoch: from 1 on.
        penalty: s·Σ|γ|, the paper's term of the loss.
        quantiles: of |γ| over all batch norms, at `QUANTILES`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    epoch: Annotated[int, Field(ge=1)]
    penalty: float
    quantiles: Annotated[tuple[float, ...], Field(min_length=7, max_length=7)]


_RECORD = TypeAdapter(ScaleRecord)


class ScaleLog:
    """Writes a line an epoch; a training that goes on from an earlier epoch replaces later lines.

    Args:
        file: the file.
        strength: the paper's s.
        scales: gives |γ| of all batch norms ``[N]``, float32 on the CPU.
    """

    def __init__(self, file: Path, strength: float, scales: Callable[[], Tensor]) -> None:
        self._file = file
        self._strength = strength
        self._scales = scales

    def after_epoch(self, record: EpochRecord) -> None:
        """For `fastprune.training.fit`."""
        scales = self._scales().double().numpy()
        quantiles = tuple(map(float, np.quantile(scales, QUANTILES)))
        now = ScaleRecord(record.epoch, self._strength * float(scales.sum()), quantiles)
        # Of a training that was killed, or began anew, there may be lines for this epoch on.
        before = [line for line in read_scales(self._file) if line.epoch < now.epoch]
        lines = (json.dumps(asdict(line)) + "\n" for line in (*before, now))
        write_atomically(self._file, "".join(lines).encode(), lasting=False)


def read_scales(file: Path) -> tuple[ScaleRecord, ...]:
    """The lines of a file; none where there is none.

    Raises:
        CheckpointError: a line is damaged.
    """
    if not file.is_file():
        return ()
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            found.append(_RECORD.validate_json(line))
        except ValidationError:
            raise CheckpointError(
                f"{file}: line {number}: not the scales of an epoch; without this file the run "
                "goes on"
            ) from None
    return tuple(found)
