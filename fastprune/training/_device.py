"""Where and in which number format a network computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from fastprune.errors import TrainingError
from fastprune.processor import bf16_instructions
from fastprune.training.options import Precision

__all__ = ["autocast", "kept_modes", "name_of", "precision_of", "precision_refusal"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_FAST_ON_CPU = {"amx_bf16", "avx512_bf16"}
"""With the second, ResNet-20 and -56, VGG-16 and DenseNet-40 train 1.7 to 1.9 times as fast in
bf16 as in fp32. Those of other processors were not measured."""


def precision_refusal(precision: Precision, device: torch.device) -> str | None:
    """Why a device does not compute so, or None."""
    if precision == "fp16" and device.type != "cuda":
        return f"fp16 needs a GPU, but the device is {device}; use auto, fp32 or bf16"
    return None


def precision_of(precision: Precision, device: torch.device) -> torch.dtype:
    """The number format that ``precision`` means on a device.

    Raises:
        TrainingError: fp16 away from a GPU.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and not _FAST_ON_CPU.isdisjoint(bf16_instructions())
        return torch.bfloat16 if fast else torch.float32
    if (why := precision_refusal(precision, device)) is not None:
        raise TrainingError(f"precision: {why}")
    return _DTYPES[precision]


def name_of(dtype: torch.dtype) -> str:
    """The precision that gives a number format."""
    return next(name for name, known in _DTYPES.items() if known == dtype)


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
