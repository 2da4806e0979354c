"""Training a fusion head on features that the experts gave once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import nn
from torch.nn import functional

from fastprune.data import InputPipeline, Placement
from fastprune.errors import TrainingError
from fastprune.files import digest_of
from fastprune.nn import FusionHead
from fastprune.options import Options
from fastprune.training._device import kept_modes
from fastprune.training._guard import LossGuard
from fastprune.training._store import Store
from fastprune.training.experts import Expert
from fastprune.training.metrics import Metrics, Totals
from fastprune.training.options import EarlyStopOptions, TrainingOptions
from fastprune.training.progress import Progress, SilentProgress
from fastprune.training.result import EpochRecord, FitResult, best_epoch, stalled
from fastprune.training.schedule import learning_rate

__all__ = ["Features", "FusionOptions", "cached_features", "fit_head", "measure_head"]

_EPOCH_SEEDS = 1_000_003
"""Epochs of one seed do not meet those of the next ones."""


class FusionOptions(Options):
    """How a fusion head is trained: AdamW, cosine, early stopping on the validation images."""

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: int = Field(default=200, ge=1, description="Passes over the cached features.")
    lr: float = Field(default=5e-4, gt=0, description="Highest learning rate of AdamW.")
    weight_decay: float = Field(default=5e-4, ge=0, description="Decoupled weight decay.")
    batch_size: int = Field(default=128, ge=2, description="Images of a training batch.")
    clip_grad_norm: float = Field(
        default=1.0, gt=0, description="Longest gradient, over all weights together."
    )
    patience: int = Field(
        default=20, ge=1, description="Epochs without a better validation top1 before the end."
    )
    checkpoint_every: float = Field(
        default=300.0,
        ge=0,
        description="Seconds between checkpoints; an epoch's end is due after a thirtieth of it. "
        "0 writes one after every epoch.",
    )


@dataclass(frozen=True, slots=True)
class Features:
    """What experts see in the images of a split.

    Attributes:
        values: ``[N, T]`` float32, the experts' features side by side.
        labels: ``[N]`` int64.
        sizes: images of each batch in which they were computed; they add up to N.
    """

    values: torch.Tensor
    labels: torch.Tensor
    sizes: tuple[int, ...]

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Features and labels, batch by batch as they were computed."""
        sizes = list(self.sizes)
        yield from zip(
            torch.split(self.values, sizes), torch.split(self.labels, sizes), strict=True
        )


def cached_features(
    experts: Sequence[Expert],
    pipeline: InputPipeline,
    *,
    device: torch.device | str,
    progress: Progress | None = None,
    name: str = "features",
) -> Features:
    """The features of every image of a pipeline's first epoch, in its order and batches.

    Args:
        experts: on ``device``.
        pipeline: its images as they come; what it alters at random stays as it was altered.
        device: where to compute, and where the features are kept.
        progress: shows how far it is.
        name: of the work, in messages.

    Raises:
        TrainingError: the pipeline has no images.
    """
    device, told = torch.device(device), progress or SilentProgress()
    values, labels = [], []
    with told.start(name, pipeline.batches, "batches") as task, torch.no_grad():
        for x, y in pipeline.epoch(0, placement=Placement(device)):
            values.append(torch.cat([expert(x) for expert in experts], 1))
            labels.append(y)
            task.advance(1)
    if not values:
        raise TrainingError(f"{name}: there are no images")
    return Features(torch.cat(values), torch.cat(labels), tuple(len(y) for y in labels))


def measure_head(head: FusionHead, features: Features) -> Metrics:
    """How well a head does: what `evaluate` finds for the fused network on the same images."""
    totals = Totals(features.values.device)
    with kept_modes(head), torch.no_grad():
        head.eval()
        for x, y in features.batches():
            logits = head(x)
            totals.add(logits, y, functional.cross_entropy(logits, y))
    return totals.read()


def fit_head(
    head: FusionHead,
    train: Features,
    validation: Features,
    options: FusionOptions,
    *,
    directory: Path | None = None,
    seed: int,
    source: str = "",
    progress: Progress | None = None,
    name: str = "fusion",
) -> FitResult:
    """Trains ``head`` in place and leaves it with the weights of its best epoch.

    The best is that of the highest validation top1, the first of equals. Order and dropout follow
    from the seed and the epoch, so that a training that was stopped at any moment and is called
    again with the same arguments and directory ends, on a CPU, in the same bytes; where it had
    ended, the stored result comes at once. torch's generators are afterwards as they were.

    Args:
        head: on the features' device.
        train: features to learn from.
        validation: features to choose the epoch by; never those of test images.
        options: the recipe.
        directory: for checkpoints, ``metrics.jsonl`` and the result; None keeps nothing.
        seed: of order and dropout.
        source: a digest of what the features follow from, so that a directory of other experts'
            is refused.
        progress: shows how far it is.
        name: of the work, in messages.

    Raises:
        TrainingError: there is only one image, or the loss is no longer finite.
        CheckpointError: the directory holds another training.
    """
    if len(train.labels) < 2:
        raise TrainingError(f"{name}: expected two training images or more")
    told = progress or SilentProgress()
    facts = {
        "options": options.model_dump(mode="json", exclude={"checkpoint_every"}),
        "seed": seed,
        "source": source,
        "shapes": [list(part.values.shape) for part in (train, validation)],
        "head": [list(t.shape) for t in head.state_dict().values()],
    }
    store = Store(directory, digest_of(facts), options.checkpoint_every, told, name)
    device = train.values.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), kept_modes(head):
        training = _Training(head, train, validation, options, seed, store, name)
        if (stored := store.result(device)) is not None:
            return training.restore_result(stored)
        training.resume()
        total, done = options.epochs, len(training.history)
        with told.start(name, total, "epochs", done=done) as task:
            while not training.over():
                task.advance(1, **training.epoch())
        return training.finish()


class _Training:
    """Where the training of a head is."""

    def __init__(
        self,
        head: FusionHead,
        train: Features,
        validation: Features,
        options: FusionOptions,
        seed: int,
        store: Store,
        name: str,
    ) -> None:
        self._head, self._train, self._validation = head, train, validation
        self._options, self._seed, self._store, self._name = options, seed, store, name
        self._optimizer = torch.optim.AdamW(
            head.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        self._schedule = TrainingOptions(
            epochs=options.epochs, lr=options.lr, schedule="cosine", warmup_epochs=0.0
        )
        self._stop = EarlyStopOptions(patience=options.patience)
        self._best: dict[str, torch.Tensor] = {}
        self.history: list[EpochRecord] = []

    def over(self) -> bool:
        """Whether all epochs are done, or validation got no better for long enough."""
        return len(self.history) >= self._options.epochs or stalled(self.history, self._stop)

    def epoch(self) -> dict[str, float]:
        """Trains an epoch, validates and keeps what is to be kept; gives figures to show."""
        begun, number = time.monotonic(), len(self.history)
        values, labels = self._train.values, self._train.labels
        # Functions of the seed and the epoch: no generator's state need be kept.
        torch.manual_seed(self._seed * _EPOCH_SEEDS + number)
        order = torch.randperm(len(labels)).to(labels.device)
        batches = [part for part in torch.split(order, self._options.batch_size) if len(part) > 1]
        guard, totals = LossGuard(labels.device, self._name), Totals(labels.device)
        kept = f"{number} epochs are done"
        rate = self._options.lr
        self._head.train()
        for batch, chosen in enumerate(batches):
            rate = learning_rate(self._schedule, number * len(batches) + batch, len(batches))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            x, y = values[chosen], labels[chosen]
            logits = self._head(x)
            loss = functional.cross_entropy(logits, y)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._head.parameters(), self._options.clip_grad_norm)
            self._optimizer.step()
            guard.watch(loss.detach(), number, batch, rate, kept)
            totals.add(logits, y, loss)
        guard.check(kept)
        found, seconds = totals.read(), time.monotonic() - begun
        validation = measure_head(self._head, self._validation)
        record = EpochRecord(
            epoch=number + 1,
            train_loss=found.loss,
            train_top1=found.top1,
            validation_loss=validation.loss,
            validation_top1=validation.top1,
            validation_top5=validation.top5,
            learning_rate=rate,
            seconds=round(seconds, 3),
            images_per_second=round(found.images / seconds, 1),
            data_wait=0.0,
            precision="fp32",
            step="eager",
            step_reason="features are in memory",
        )
        self.history.append(record)
        self._store.append_metrics(asdict(record))
        if best_epoch(self.history) == record.epoch:
            self._best = {key: t.clone() for key, t in self._head.state_dict().items()}
        if self._store.due(epoch_closed=True):
            self._store.save(self._state())
        return {"loss": found.loss, "validation_top1": validation.top1}

    def resume(self) -> None:
        """Goes on from the newest checkpoint, where there is one."""
        state = self._store.newest(self._train.values.device)
        if state is not None:
            self._head.load_state_dict(state["head"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._best = state["best"]
            self.history = [EpochRecord(**record) for record in state["history"]]
        self._store.rewrite_metrics([asdict(record) for record in self.history])

    def finish(self) -> FitResult:
        """Puts the best weights into the head and stores the result."""
        self._head.load_state_dict(self._best)
        history = [asdict(record) for record in self.history]
        self._store.finish({"head": self._best, "history": history})
        return self._result()

    def restore_result(self, stored: dict[str, Any]) -> FitResult:
        """What `finish` stored."""
        self._head.load_state_dict(stored["head"])
        self.history = [EpochRecord(**record) for record in stored["history"]]
        return self._result()

    def _state(self) -> dict[str, Any]:
        return {
            "head": self._head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "history": [asdict(record) for record in self.history],
        }

    def _result(self) -> FitResult:
        return FitResult(
            epochs=len(self.history),
            kept_epoch=best_epoch(self.history),
            stopped_early=len(self.history) < self._options.epochs,
            validation=measure_head(self._head, self._validation),
            history=tuple(self.history),
        )
