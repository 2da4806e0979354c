"""What of a kernel is really compiled: read by the tests that look at its machine code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Variant"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation of a kernel, as its launcher asks for it.

    Attributes:
        name: unique in its file, ``"channels_last-fp16"``.
        kernel: the ``@triton.jit`` function.
        signature: Triton type of every argument: ``"*fp16"``, ``"i64"``, ``"constexpr"``.
        constants: values of the constexpr arguments.
        aligned: arguments that are multiples of 16 (addresses of fresh tensors, even sizes);
            Triton widens loads by them.
        warps: number of warps.
        stages: number of software pipeline stages.
        wide: the loads of the large tensors must be 128 bits wide.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 3
    wide: bool = True
