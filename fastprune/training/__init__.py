"""Training, evaluation and what belongs to them: schedules, checkpoints, progress."""

from __future__ import annotations

from fastprune.training._possible import impossible
from fastprune.training.evaluate import evaluate
from fastprune.training.mean_logits import MeanLogits, mean_logits
from fastprune.training.metrics import Metrics
from fastprune.training.options import DistillOptions, EarlyStopOptions, TrainingOptions
from fastprune.training.progress import Progress, choose_progress
from fastprune.training.recalibrate import recalibrate_batch_norm
from fastprune.training.result import EpochRecord, FitResult
from fastprune.training.trainer import fit

__all__ = [
    "DistillOptions",
    "EarlyStopOptions",
    "EpochRecord",
    "FitResult",
    "MeanLogits",
    "Metrics",
    "Progress",
    "TrainingOptions",
    "choose_progress",
    "evaluate",
    "fit",
    "impossible",
    "mean_logits",
    "recalibrate_batch_norm",
]
