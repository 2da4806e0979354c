"""Triton kernels on the CPU, by Triton's interpreter: ``make interpret``.

The interpreter must be on before a kernel is imported, so these tests have a process of their own.
"""

from __future__ import annotations

import os

import pytest
import torch

from fastprune.ops import registered
from fastprune.testing.ops import OpCase, cases_of, check_implementation

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET is not 1: make interpret", allow_module_level=True)

KERNELS = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name, op in registered().items()
    if any(i.backend == "triton" for i in op.implementations)
    for case in cases_of(name)
]


@pytest.mark.parametrize(("op", "case"), KERNELS)
def test_values(op: str, case: OpCase) -> None:
    refusal = check_implementation(op, case, "triton", torch.device("cpu"))
    assert refusal is None or case is not cases_of(op)[0]
