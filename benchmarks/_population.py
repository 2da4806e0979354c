"""What benchmarks of whole populations share: sizes, images, an evolution to breed them."""

from __future__ import annotations

import torch

from fastprune.data import DataOptions, Splits, load
from fastprune.search import Evolution, Space

__all__ = ["CPU", "EXAMPLE", "MEASURED", "RECALIBRATED", "K", "digits", "evolution"]

K, RECALIBRATED, MEASURED = 32, 2, 480
"""Candidates, batches of recalibration, images that candidates are measured on."""

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(1, 3, 32, 32)

_BATCH = 48


def digits() -> Splits:
    """Images of digits, in batches of 48."""
    options = DataOptions(
        name="digits",
        batch_size=_BATCH,
        eval_batch_size=_BATCH,
        validation=MEASURED,
        train_limit=RECALIBRATED * _BATCH + MEASURED,
        test_limit=_BATCH,
    )
    return load(options, 0)


def evolution(space: Space, iterations: int) -> Evolution:
    """Populations of K with the shares of MetaPruning's paper."""
    return Evolution(
        space,
        0,
        population=K,
        select_num=10,
        mutation_num=K // 2,
        crossover_num=K // 2,
        iterations=iterations,
        mutation_probability=0.1,
    )
