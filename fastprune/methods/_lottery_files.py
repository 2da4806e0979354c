"""Names of what a lottery ticket leaves in its method's directory; a state's best epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fastprune.artifact import load_state, save_state
from fastprune.distributed import first
from fastprune.errors import CheckpointError
from fastprune.files import sha256_of, write_json
from fastprune.training import EpochRecord

__all__ = ["BestEpoch", "LotteryFiles"]


@dataclass(frozen=True, slots=True)
class LotteryFiles:
    """Paths in ``directory``."""

    directory: Path

    @property
    def states(self) -> Path:
        """`StateRecord` of every state that is done."""
        return self.directory / "states.jsonl"

    @property
    def rewind(self) -> Path:
        """Weights that every state begins with."""
        return self.directory / "rewind.safetensors"

    @property
    def networks(self) -> Path:
        """Folder of the networks that states ended with, and of their best epochs."""
        return self.directory / "states"

    def training(self, state: int) -> Path:
        """Folder of a state's training."""
        return self.directory / f"state-{state:02}"

    def weights(self, state: int) -> Path:
        """The network that a state ended with."""
        return self.networks / f"state-{state:02}.safetensors"

    def best(self, state: int) -> Path:
        """The network of its best epoch, as it was trained."""
        return self.networks / f"state-{state:02}-best.safetensors"

    def ticket(self, state: int) -> Path:
        """What a state is to train."""
        return self.directory / f"ticket-{state:02}.pt"

    @property
    def digests(self) -> Path:
        """SHA-256 of the weights that were written, by path in ``directory``."""
        return self.directory / "digests.json"

    def save(self, path: Path, model: nn.Module) -> None:
        """Writes weights, and their digest after them: a kill in between has both made again."""
        first(lambda: self._save(path, model))

    def _save(self, path: Path, model: nn.Module) -> None:
        save_state(path, model)
        write_json(self.digests, self._known() | {self._name(path): sha256_of(path)})

    def saved(self, path: Path) -> bool:
        """Whether these weights were written, and their digest."""
        return path.is_file() and self._name(path) in self._known()

    def load(self, path: Path) -> dict[str, Tensor]:
        """Weights that `save` wrote.

        Raises:
            CheckpointError: they are missing, or others.
        """
        if not path.is_file() or sha256_of(path) != self._known().get(self._name(path)):
            raise CheckpointError(
                f"{path}: missing, or not what was written; --fresh-search begins the method anew"
            )
        return load_state(path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    def _known(self) -> dict[str, str]:
        if not self.digests.is_file():
            return {}
        try:
            found: dict[str, str] = json.loads(self.digests.read_text(encoding="utf-8"))
        except ValueError:
            # Damaged: then no weights are known to be what they were.
            return {}
        return found


class BestEpoch:
    """Keeps the weights of the epoch with the best validation accuracy, the first of equals.

    Args:
        weights: file for them.
    """

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._accuracy = weights.with_suffix(".json")

    @property
    def top1(self) -> float | None:
        """Percent; None before any epoch, and without validation images.

        Raises:
            CheckpointError: the file of it is damaged.
        """
        if not self._accuracy.is_file():
            return None
        try:
            return float(json.loads(self._accuracy.read_text(encoding="utf-8"))["validation_top1"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self._accuracy}: damaged; --fresh-search begins the method anew"
            ) from None

    def see(self, record: EpochRecord, model: nn.Module) -> None:
        """Told of every epoch; of one that is trained again after a kill, it is told again."""
        first(lambda: self._see(record, model))

    def _see(self, record: EpochRecord, model: nn.Module) -> None:
        best = self.top1
        if record.validation_top1 is None or (best is not None and record.validation_top1 <= best):
            return
        save_state(self._weights, model)
        # Last: a kill in between lets the same epoch be found again.
        write_json(
            self._accuracy,
            {"epoch": record.epoch, "validation_top1": record.validation_top1},
        )
