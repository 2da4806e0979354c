"""The examples of README and docs/ops.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _examples(page: str, heading: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    section = re.split(r"^## ", text.partition(f"## {heading}\n")[2], flags=re.M)[0]
    return re.findall(r"^```python\n(.*?)^```", section, flags=re.M | re.S)


def _sections() -> list[str]:
    return re.findall(r"^## (.+)$", (ROOT / "docs/ops.md").read_text("utf-8"), flags=re.M)


def test_use_the_ops_in_your_own_code() -> None:
    (code,) = _examples("README.md", "Use the ops in your own code")
    names: dict[str, object] = {}

    exec(compile(code, "README.md", "exec"), names)

    assert set(names["apoz"]) >= {"relu", "layer1.0.relu", "layer1.0.relu#2"}


@pytest.mark.parametrize("heading", _sections())
def test_every_op_has_an_example_that_runs(heading: str) -> None:
    examples = _examples("docs/ops.md", heading)

    assert examples
    for code in examples:
        exec(compile(code, f"docs/ops.md, {heading}", "exec"), {})
