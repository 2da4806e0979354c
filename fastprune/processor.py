"""What the processor can do."""

from __future__ import annotations

import torch

__all__ = ["bf16_instructions"]


def bf16_instructions() -> list[str]:
    """Names of the CPU's instructions that multiply bfloat16; with none it is emulated, slowly."""
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return [name for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16") if has.get(name)]
    # Older torch tells the two of x86 alone, the first by its tiles.
    told = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return [name for name, ask in told.items() if getattr(torch.cpu, ask, lambda: False)()]
