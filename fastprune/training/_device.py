"""Where and in which number format a network computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from fastprune.errors import TrainingError
from fastprune.training.options import Precision

__all__ = ["autocast", "kept_modes", "precision_of"]


def precision_of(precision: Precision, device: torch.device) -> torch.dtype:
    """The number format that ``precision`` means on a device.

    Raises:
        TrainingError: fp16 away from a GPU.
    """
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise TrainingError(
            f"precision: fp16 needs a GPU, but the device is {device}; use auto, fp32 or bf16"
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network computes in ``dtype``."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Puts every module back into the training or evaluation mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
