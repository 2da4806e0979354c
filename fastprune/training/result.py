"""What training leaves: a record of each epoch, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastprune.training.metrics import Metrics
from fastprune.training.options import EarlyStopOptions

__all__ = ["EpochRecord", "FitResult", "best_epoch", "stalled"]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One line of ``metrics.jsonl``.

    Attributes:
        epoch: from 1 on.
        train_loss: mean over the epoch, of the loss that is trained on.
        train_top1: percent, of augmented images while the weights changed.
        validation_loss: mean cross entropy; None without validation images, as the next two.
        validation_top1: percent.
        validation_top5: percent.
        learning_rate: of the epoch's last step.
        seconds: of training, without validation.
        images_per_second: trained on.
        data_wait: share of these seconds, 0 to 1, in which the next batch was waited for.
        precision: the number format of the arithmetic.
        step: how batches were run: eager, compiled or captured.
        step_reason: why so, or why in no faster way.
        validation_focus: percent, mean of the accuracies of the classes in focus; None without.
    """

    epoch: int
    train_loss: float
    train_top1: float
    validation_loss: float | None
    validation_top1: float | None
    validation_top5: float | None
    learning_rate: float
    seconds: float
    images_per_second: float
    data_wait: float
    precision: str
    step: str
    step_reason: str
    validation_focus: float | None = None

    @property
    def accuracy(self) -> float | None:
        """What decides which epoch is best: of the classes in focus, where there are any."""
        return self.validation_top1 if self.validation_focus is None else self.validation_focus


@dataclass(frozen=True, slots=True)
class FitResult:
    """What training gave.

    Attributes:
        epochs: how many were trained.
        kept_epoch: the one whose weights the network has, from 1 on.
        stopped_early: whether early stopping ended it.
        validation: how well these weights do; None without validation images.
        history: all epochs.
    """

    epochs: int
    kept_epoch: int
    stopped_early: bool
    validation: Metrics | None
    history: tuple[EpochRecord, ...]


def best_epoch(history: Sequence[EpochRecord]) -> int:
    """The epoch, from 1 on, of the best validation accuracy; the first of equals."""
    return max(history, key=lambda record: (record.accuracy or 0.0, -record.epoch)).epoch


def stalled(history: Sequence[EpochRecord], options: EarlyStopOptions | None) -> bool:
    """Whether validation has got no better for as many epochs as ``patience`` allows."""
    if options is None:
        return False
    best, since = float("-inf"), 0
    for record in history:
        if options.metric == "top1":
            value = record.accuracy
        else:
            value = None if record.validation_loss is None else -record.validation_loss
        if value is not None and value > best + options.min_delta:
            best, since = value, 0
        else:
            since += 1
    return since >= options.patience
