"""Every op and every implementation of one, through the cases of fastprune.testing.ops."""

from __future__ import annotations

import os

import pytest
import torch

from fastprune.ops import registered, use_backend
from fastprune.testing.ops import (
    OpCase,
    cases_of,
    check_compiled,
    check_implementation,
    check_registration,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

EVERY = [
    pytest.param(op, case, device, id=f"{op}-{case.name}-{device}")
    for op in registered()
    for case in cases_of(op)
    for device in DEVICES
]


@pytest.fixture(autouse=True)
def _no_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter is on: tests/kernels are for that")


@pytest.mark.parametrize(("op", "case", "device"), EVERY)
def test_values(op: str, case: OpCase, device: str) -> None:
    for backend, missing in registered()[op].availability(device)[:-1]:
        if missing is None:
            refusal = check_implementation(op, case, backend, torch.device(device))
            assert refusal is None or refusal.startswith(f"{op}: {backend} was asked for")


@pytest.mark.parametrize(
    ("op", "case", "device"), [p for p in EVERY if p.values[1].call is not None]
)
def test_compiled(op: str, case: OpCase, device: str) -> None:
    check_compiled(op, case, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", registered())
def test_registration(op: str, device: str) -> None:
    for case in cases_of(op)[:3]:
        check_registration(op, case, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", registered())
def test_what_is_compiled_takes_the_first_case(op: str, device: str) -> None:
    """A refusal of the plainest arguments would leave an implementation untested."""
    arguments = cases_of(op)[0].make(torch.device(device), torch.Generator().manual_seed(0))
    for backend, missing in registered()[op].availability(device):
        if missing is None:
            with use_backend(backend):
                explanation, _ = registered()[op].choose(device, arguments)
            assert explanation.backend == backend
