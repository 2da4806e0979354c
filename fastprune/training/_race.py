"""Giving a candidate up early: a paired test against its rival, on the same images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastprune.data import InputPipeline, Placement
from fastprune.files import write_atomically, write_json
from fastprune.training._device import autocast, kept_modes, precision_of
from fastprune.training.options import Precision

__all__ = ["Race", "paired_z"]

SURE = 3.0
"""Standard deviations behind, from which on a candidate counts as lost: by chance once in 740."""


class Race:
    """One candidate's training beside its rival's, epoch by epoch.

    After each epoch but the last the images that the candidate gets right are written down. It is
    lost where the rival, after as many epochs, got so many more of the same images right that
    chance does not explain it (McNemar's test), and the candidate has not reached the fitness that
    the rival ended with either.

    Args:
        folder: holds what every candidate got right, and the fitness it ended with.
        digest: of the candidate's plan.
        rival: of its rival's; without one nothing is lost.
        epochs: of a whole training.
        pipeline: the images fitness is measured on.
        topk: an image is right with its class among so many highest logits.
        precision: of the arithmetic.
        channels_last: memory format of the network.
        device: where it is.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        rival: str | None,
        *,
        epochs: int,
        pipeline: InputPipeline,
        topk: int,
        precision: Precision,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        self._folder, self._digest, self._rival = folder, digest, rival
        self._epochs, self._pipeline, self._topk = epochs, pipeline, topk
        self._dtype = precision_of(precision, device)
        self._placement = Placement(device, channels_last=channels_last)
        folder.mkdir(parents=True, exist_ok=True)

    def lost(self, model: nn.Module, epoch: int) -> bool:
        """Whether to give the candidate up after its first ``epoch`` epochs."""
        if epoch >= self._epochs:
            return False
        mine = self._right(model, epoch)
        if self._rival is None:
            return False
        ended = self._folder / f"{self._rival}.json"
        theirs = self._file(self._rival, epoch)
        if not ended.is_file() or not theirs.is_file():
            return False
        reached = json.loads(ended.read_text())["fitness"]
        return paired_z(np.load(theirs), mine) > SURE and 100 * float(mine.mean()) < reached

    def close(self, fitness: float) -> None:
        """Writes down how the candidate ended, for those it is the rival of."""
        write_json(self._folder / f"{self._digest}.json", {"fitness": fitness})

    def _right(self, model: nn.Module, epoch: int) -> npt.NDArray[np.bool_]:
        # Read back where it stands: a training that goes on in the middle of the next epoch has
        # other weights by now.
        file = self._file(self._digest, epoch)
        if not file.is_file():
            right = self._measure(model)
            write_atomically(file, lambda path: _save(path, right))
            return right
        there: npt.NDArray[np.bool_] = np.load(file)
        return there

    def _file(self, digest: str, epoch: int) -> Path:
        return self._folder / f"{digest}-{epoch}.npy"

    def _measure(self, model: nn.Module) -> npt.NDArray[np.bool_]:
        found = []
        with kept_modes(model), torch.no_grad(), autocast(self._dtype, self._placement.device):
            model.eval()
            for x, y in self._pipeline.epoch(0, placement=self._placement):
                logits = model(x)
                best = logits.topk(min(self._topk, logits.shape[1]), dim=1).indices
                found.append((best == y[:, None]).any(1))
        right: npt.NDArray[np.bool_] = torch.cat(found).cpu().numpy()
        return right


def paired_z(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """By how many standard deviations ``a`` is right more often than ``b``, on the same images."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    differing = only_a + only_b
    return (only_a - only_b) / differing**0.5 if differing else 0.0


def _save(path: Path, array: npt.NDArray[np.bool_]) -> None:
    with path.open("wb") as stream:
        np.save(stream, array)
