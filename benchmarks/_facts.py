"""What a measurement was made on, and the bounds it is held to."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["bound", "machine"]

BOUNDS = Path(__file__).with_name("bounds.json")


def bound(name: str) -> float:
    """The committed bound of one gate."""
    value: float = json.loads(BOUNDS.read_text())[name]
    return value


def machine() -> dict[str, Any]:
    """Processor, cores, versions, and the GPU where there is one."""
    import torch

    gpu: dict[str, Any] = {}
    if torch.cuda.is_available():
        from _gpu import device_facts

        gpu = {"gpu": device_facts() | {"triton": _version("triton")}}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("fastprune", "torch-pruning", "torchvision")},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **gpu,
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
