"""The compiled extension as implementations see it: plain functions over pointers."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fastprune.errors import BackendError
from fastprune.ops._op import Unavailable

__all__ = ["DTYPES", "cuda_extension", "extension", "reading_tensors"]

# Of csrc/cpu/simd.h.
_LEVELS = ("", "baseline", "avx2", "avx512")

_HERE = Path(__file__).parents[1]

# The numbers of csrc/dtype.h.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


def extension() -> Any:
    """``fastprune._C``.

    Raises:
        Unavailable: it was not built, or does not load.
        BackendError: FASTPRUNE_SIMD has no such level.
    """
    level = os.environ.get("FASTPRUNE_SIMD", "")
    if level not in _LEVELS:
        raise BackendError(
            f"FASTPRUNE_SIMD: expected {', '.join(_LEVELS[1:])} or nothing, got {level!r}"
        )
    try:
        return import_module("fastprune._C")
    except (ImportError, OSError) as problem:
        if not _HERE.joinpath("_build.json").exists():
            raise Unavailable(
                f"{_HERE} is a source tree that was never built: pip install -e . there, or "
                "start Python in another folder"
            ) from problem
        raise Unavailable(
            f"fastprune._C does not load ({problem}); `fastprune doctor` says why"
        ) from problem


def cuda_extension() -> Any:
    """``fastprune._C``, compiled with CUDA.

    Raises:
        Unavailable: as `extension`, or it was compiled for the CPU alone.
    """
    module = extension()
    if module.build_info()["cuda"] is None:
        raise Unavailable("fastprune._C was compiled without CUDA; `fastprune doctor` says why")
    return module


def reading_tensors(module: Any) -> Any:
    """``module``, an extension as above, told how to read torch's tensors by itself."""
    module.know_torch(
        tensor=torch.Tensor,
        parameter=torch.nn.Parameter,
        dtypes=tuple(DTYPES),
        strided=torch.strided,
        increment_version=torch.autograd.graph.increment_version,
        # Absent where torch was built for the CPU alone.
        current_stream=getattr(torch._C, "_cuda_getCurrentRawStream", None),
        # Not there in older versions of torch, whose tensors are read by their methods.
        exchange=getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
    )
    return module
