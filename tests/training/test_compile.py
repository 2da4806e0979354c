from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from fastprune.training._compile import Compiled


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def test_whole_batches_are_compiled_and_others_are_not() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    said: list[str] = []
    run = Compiled(lambda x: (model(x),), images=4, say=said.append)
    for size in (4, 3, 4, 1):
        x = torch.randn(size, 6)
        torch.testing.assert_close(run(x)[0], model(x))
    assert (run.refusal, run.parts, said) == (None, None, [])
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counted == 1


def test_code_that_is_no_one_graph_is_compiled_in_parts() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        torch._dynamo.graph_break()
        return (y.cos(),)

    said: list[str] = []
    run = Compiled(function, images=4, say=said.append)
    x = torch.randn(4)
    for _ in range(2):
        torch.testing.assert_close(run(x)[0], x.sin().cos())
    assert run.refusal is None
    assert run.parts
    assert said == [f"compile: in parts, since torch cannot take it as a whole: {run.parts}"]


WITHOUT = """
import torch
from fastprune.training._compile import Compiled
said = []
run = Compiled(lambda x: (x.exp().sin(),), images=4, say=said.append)
x = torch.randn(4)
for _ in range(2):
    assert torch.equal(run(x)[0], x.exp().sin())
assert "No working C++ compiler" in run.refusal, run.refusal
assert said == [f"compile: not possible here, going on without: {run.refusal}"], said
"""


def test_without_a_compiler_it_goes_on_and_says_so() -> None:
    # In a Python of its own: torch looks for a compiler once.
    nothing = {"CXX": "/no/such/compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, **nothing},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
