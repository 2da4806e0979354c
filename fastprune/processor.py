"""What the processor can do, and how much of it is there for this process."""

from __future__ import annotations

import os

import torch

__all__ = ["bf16_instructions", "cores"]


def cores() -> int:
    """Cores for this process, at least one: those it may run on, shared with the others that
    torchrun began on this machine.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (there or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def bf16_instructions() -> list[str]:
    """Names of the CPU's instructions that multiply bfloat16; with none it is emulated, slowly."""
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return [name for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16") if has.get(name)]
    # Older torch tells the two of x86 alone, the first by its tiles.
    told = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return [name for name, ask in told.items() if getattr(torch.cpu, ask, lambda: False)()]
