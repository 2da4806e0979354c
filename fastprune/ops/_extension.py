"""The compiled extension as implementations see it: plain functions over pointers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from fastprune.ops._op import Unavailable

__all__ = ["DTYPES", "cuda_extension", "extension"]

# The numbers of csrc/dtype.h.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


def extension() -> Any:
    """``fastprune._C``.

    Raises:
        Unavailable: it was not built, or does not load.
    """
    try:
        return import_module("fastprune._C")
    except (ImportError, OSError) as problem:
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
