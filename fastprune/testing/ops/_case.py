"""The argument list of one call of an op."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["OpCase", "cases_of"]


@dataclass(frozen=True, slots=True)
class OpCase:
    """One call of a registered op.

    Attributes:
        name: what is special about it, ``"fp16-channels_last"``.
        make: gives the op's positional arguments on a device; drawn from the generator, which is
            on the CPU, so that all devices see the same numbers.
        call: the public function as a user would call it, given what ``make`` gave; it is run
            under ``torch.compile`` too. None where the case tells nothing more there.
        large: needs gigabytes; run on GPUs alone.
        slack: how many times plain torch's error an implementation may make, and rounding steps of
            the result's dtype where plain torch makes none.
    """

    name: str
    make: Callable[[torch.device, torch.Generator], tuple[Any, ...]]
    call: Callable[..., Any] | None = None
    large: bool = False
    slack: float = 4.0


def cases_of(op: str) -> list[OpCase]:
    """The cases of the op of that name, none of them large where there is no GPU.

    They are in the file of its name, without the underscore that ends the name of one that changes
    its arguments.
    """
    module = importlib.import_module(f"fastprune.testing.ops.{op.removesuffix('_')}")
    cases: list[OpCase] = module.cases()
    return [case for case in cases if torch.cuda.is_available() or not case.large]
