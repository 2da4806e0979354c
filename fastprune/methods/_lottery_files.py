"""Names of what a lottery ticket leaves in its method's directory; a state's best epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fastprune.artifact import save_state
from fastprune.files import write_json
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
        """Percent; None before any epoch, and without validation images."""
        if not self._accuracy.is_file():
            return None
        found: float = json.loads(self._accuracy.read_text())["validation_top1"]
        return found

    def see(self, record: EpochRecord, model: nn.Module) -> None:
        """Told of every epoch; of one that is trained again after a kill, it is told again."""
        best = self.top1
        if record.validation_top1 is None or (best is not None and record.validation_top1 <= best):
            return
        save_state(self._weights, model)
        # Last: a kill in between lets the same epoch be found again.
        write_json(
            self._accuracy,
            {"epoch": record.epoch, "validation_top1": record.validation_top1},
        )
