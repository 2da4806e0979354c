"""What a latency is of: how many images at a time, and in which mode the network runs."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from fastprune.errors import ConfigError, nearest
from fastprune.options import Options
from fastprune.processor import bf16_instructions

__all__ = ["MODES", "EagerMode", "LatencyOptions", "Mode", "mode_refusal"]

EagerMode = Literal["eager", "channels_last", "bf16", "channels_last+bf16"]

MODES = (
    "eager",
    "channels_last",
    "bf16",
    "channels_last+bf16",
    "compiled",
    "compiled+channels_last",
    "compiled+bf16",
    "compiled+channels_last+bf16",
)


class LatencyOptions(Options):
    """How latency is measured, for the report and for a budget in it.

    Attributes:
        batch_size: images at a time.
        repeats: turns that the report's medians are of; 0 for none.
        mode: ``eager`` is fp32 with contiguous memory.
    """

    batch_size: int = Field(default=16, ge=1)
    repeats: int = Field(default=20, ge=0)
    mode: EagerMode = "eager"


class Mode:
    """A way to run a network: parts of ``compiled+channels_last+bf16``, or ``eager``.

    Attributes:
        name: as above.
        compiled: by ``torch.compile``.
        memory_format: of weights and images.
        dtype: of weights and images.
    """

    def __init__(self, name: str) -> None:
        """Raises ConfigError unless ``name`` is one of `MODES`."""
        if name not in MODES:
            raise ConfigError(f"mode: unknown mode {name!r}{nearest(name, MODES)}")
        parts = name.split("+")
        self.name = name
        self.compiled = "compiled" in parts
        self.memory_format = (
            torch.channels_last if "channels_last" in parts else torch.contiguous_format
        )
        self.dtype = torch.bfloat16 if "bf16" in parts else torch.float32

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network in this mode, in place; compiling it is another matter."""
        model.eval().to(self.dtype)
        return model.to(memory_format=self.memory_format)

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Images in this mode."""
        images = images.to(self.dtype)
        if images.ndim == 4:
            images = images.contiguous(memory_format=self.memory_format)
        return images


def mode_refusal(mode: Mode, device: torch.device) -> str | None:
    """Why a mode cannot be run on a device, or None; of compiling, see `compile_refusal`."""
    if mode.dtype is not torch.bfloat16:
        return None
    if device.type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if there else "this GPU has no bf16 arithmetic"
    if bf16_instructions():
        return None
    return "this CPU has no bf16 instructions, so bf16 would be emulated, slowly"
