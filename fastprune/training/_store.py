"""What training keeps in its directory: checkpoints, ``metrics.jsonl`` and the result."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastprune.distributed import first, rank
from fastprune.errors import CheckpointError
from fastprune.files import named, write_atomically
from fastprune.training import checkpoint
from fastprune.training.progress import Progress

__all__ = ["State", "Store"]

METRICS = "metrics.jsonl"
RESULT = "result.pt"

State = dict[str, Any]


_SOONER = 30
"""With the default of 300 seconds, an epoch that took ten is kept."""


class Store:
    """The files of one training; without a directory it keeps nothing.

    Of several ranks the first alone writes, and all read what it found to be whole.

    Args:
        directory: made if it is not there.
        identity: what the training follows from; files of another identity are refused.
        every: seconds between checkpoints.
        progress: told of broken files.
        name: of the training, for messages.
    """

    def __init__(
        self,
        directory: Path | None,
        identity: str,
        every: float,
        progress: Progress,
        name: str,
    ) -> None:
        self.directory = directory
        self._identity = identity
        self._every = every
        self._progress = progress
        self._name = name
        self._begun = self._saved = time.monotonic()
        self._writes = directory is not None and rank() == 0
        if directory is not None and self._writes:
            directory.mkdir(parents=True, exist_ok=True)

    def result(self, device: torch.device) -> State | None:
        """The stored result, if the training is done."""
        return self._agreed(lambda: self._result(device))

    def _result(self, device: torch.device) -> State | None:
        if self.directory is None or not (self.directory / RESULT).exists():
            return None
        try:
            state = checkpoint.read(self.directory / RESULT, device)
        except CheckpointError as error:
            self._warn(f"{error}; going on from the last checkpoint")
            return None
        return self._own(state)

    def newest(self, device: torch.device) -> State | None:
        """The newest whole checkpoint."""
        return self._agreed(lambda: self._newest(device))

    def _agreed(self, read: Callable[[], State | None]) -> State | None:
        """What ``read`` gives; other ranks read it after the first, where there is any."""
        held: list[State | None] = []

        def look() -> bool:
            held.append(read())
            return held[0] is not None

        there = first(look)
        if there and not held:
            # The first has removed what is broken, and told of it.
            held.append(read())
        return held[0] if held else None

    def _newest(self, device: torch.device) -> State | None:
        if self.directory is None:
            return None
        state = checkpoint.load_newest(self.directory, device, self._warn)
        return None if state is None else self._own(state)

    def due(self, *, epoch_closed: bool) -> bool:
        """Whether it is time for a checkpoint: the end of an epoch is a good one much earlier."""
        return self.wait(epoch_closed=epoch_closed) <= 0

    def wait(self, *, epoch_closed: bool = False) -> float:
        """Seconds until it is."""
        if not self._writes:
            return math.inf
        wait = self._every / _SOONER if epoch_closed else self._every
        return self._saved + wait - time.monotonic()

    def save(self, state: State) -> None:
        """Writes a checkpoint."""
        if self.directory is not None and self._writes:
            checkpoint.save_rotating(self.directory, {"identity": self._identity, **state})
            self._saved = time.monotonic()

    def finish(self, state: State) -> None:
        """Writes the result."""
        if self.directory is not None and self._writes:
            # What takes seconds to make again is not worth waiting for the disk, 13 ms at every
            # candidate of a search.
            lasting = time.monotonic() - self._begun >= self._every / _SOONER
            content = {"identity": self._identity, **state}
            checkpoint.write(self.directory / RESULT, content, lasting=lasting)

    def rewrite_metrics(self, records: Sequence[dict[str, Any]]) -> None:
        """Makes ``metrics.jsonl`` hold these epochs and no others."""
        if self.directory is not None and self._writes:
            lines = "".join(json.dumps(record) + "\n" for record in records)
            # The epochs after these are appended without waiting for the disk.
            write_atomically(self.directory / METRICS, lines.encode(), lasting=False)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds an epoch to ``metrics.jsonl``."""
        if self.directory is not None and self._writes:
            file = self.directory / METRICS
            with named(file), file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def _warn(self, message: str) -> None:
        self._progress.note(f"{self._name}: {message}")

    def _own(self, state: State) -> State:
        if state.get("identity") != self._identity:
            raise CheckpointError(
                f"{self.directory}: holds a training of other options, data or network; "
                "remove it or train in another folder"
            )
        return state
