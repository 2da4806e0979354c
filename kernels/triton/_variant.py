"""What of a kernel is really compiled: read by the tests that look at its machine code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Variant"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation of a kernel, as its launcher asks for it.

    A file's launcher and its ``variants()`` take constants, warps and stages from one function or
    table, ``_config(inner, itemsize)`` say, and ``variants()`` calls it with the sizes that
    matter: what is compiled and looked at is then what runs. Every kernel that is launched has at
    least one variant. tests/machine_code also compiles what the op's small cases launch, and holds
    its warps and stages to the variant of the same constants.

    Attributes:
        name: unique in its file, ``"channels_last-fp16"``.
        kernel: the ``@triton.jit`` function.
        signature: Triton type of every argument: ``"*fp16"``, ``"i64"``, ``"constexpr"``.
        constants: values of the constexpr arguments.
        aligned: arguments that are multiples of 16 (addresses of fresh tensors, even sizes);
            Triton widens loads by them. Names that this kernel has not, or has as constants,
            are passed over, so that kernels can share the list.
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
