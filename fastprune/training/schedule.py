"""The learning rate as a function of the step: nothing to store, nothing to drift on resuming."""

from __future__ import annotations

import math

from fastprune.training.options import TrainingOptions

__all__ = ["learning_rate"]


def learning_rate(options: TrainingOptions, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step.

    Args:
        options: schedule and its numbers.
        step: optimizer steps done before this one.
        steps_per_epoch: optimizer steps of an epoch.
    """
    total = options.epochs * steps_per_epoch
    warm = round(options.warmup_epochs * steps_per_epoch)
    if step < warm:
        return options.lr * (step + 1) / (warm + 1)
    if options.schedule == "multistep":
        # Compared as whole steps: fractions of epochs such as 0.5 · 99 still fall exactly once.
        falls = sum(
            step >= (m * steps_per_epoch if isinstance(m, int) else round(m * total))
            for m in options.milestones
        )
        return float(options.lr * options.gamma**falls)
    done = (step - warm) / (total - warm)
    if options.schedule == "cosine":
        return options.lr * (1 + math.cos(math.pi * done)) / 2
    if options.schedule == "linear":
        return options.lr * (1 - done)
    return options.lr
