"""``states.jsonl``: the states of a lottery ticket, a line each, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fastprune.errors import CheckpointError
from fastprune.files import write_atomically

__all__ = ["StateRecord", "read_states", "write_states"]

Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class StateRecord:
    """A state and what came of it.

    Attributes:
        state: from 0 on.
        remaining_weights: prunable weights that the state's network has left.
        prunable_weights: those of the unpruned network.
        channels: of all convolutions of the state's network, as costs count them.
        full_channels: those of the unpruned network.
        macs: of the state's network.
        params: of the state's network.
        widths: channels that stay, by group.
        validation_top1: percent, at the end of the state's training; None without validation
            images, as the next two.
        cut_top1: percent, once the weights that the state penalised were cut; None where it
            penalised none.
        penalised_norm: ‖U‖ at the end of the training, U the weights that the state penalised;
            None where it penalised none.
        best_validation_top1: percent, of the state's best epoch.
        test_top1: percent; None where the state was not measured on test images.
        seconds: that the state took.
        strengths: epochs of the state's training and the penalty's strength from there on; none
            where the state penalised nothing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    state: Count
    remaining_weights: Count
    prunable_weights: Annotated[int, Field(ge=1)]
    channels: Count
    full_channels: Annotated[int, Field(ge=1)]
    macs: Count
    params: Count
    widths: dict[str, Count]
    validation_top1: Percent | None
    cut_top1: Percent | None
    penalised_norm: Number | None
    best_validation_top1: Percent | None
    test_top1: Percent | None
    seconds: Number
    strengths: tuple[tuple[Number, Number], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as one line of the file has it."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> StateRecord:
        """The record that `to_dict` was of.

        Raises:
            ValueError: it was of none; the message names the first field that is wrong.
        """
        return _parsed(json.dumps(content))


_STATE = TypeAdapter(StateRecord)


def read_states(path: Path) -> tuple[StateRecord, ...]:
    """The states of a file, the first one first; a part of a line at its end is left out.

    Raises:
        CheckpointError: the file is not there, or a line is not of the state whose turn it is.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines):
        where = f"{path}: line {number + 1}"
        try:
            record = _parsed(line)
        except ValueError as error:
            raise CheckpointError(f"{where}: not a state: {error}") from None
        if record.state != number:
            raise CheckpointError(f"{where}: expected state {number}, got state {record.state}")
        found.append(record)
    return tuple(found)


def write_states(path: Path, records: Iterable[StateRecord]) -> None:
    """Makes a file hold these states and no others; a kill leaves the old ones or these."""
    lines = (json.dumps(record.to_dict(), allow_nan=False) + "\n" for record in records)
    write_atomically(path, "".join(lines).encode())


def _parsed(line: str | bytes) -> StateRecord:
    try:
        return _STATE.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(": ".join(filter(None, (where, first["msg"])))) from None
