"""The README's own example of the ops, run as it stands there."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_use_the_ops_in_your_own_code() -> None:
    section = README.read_text("utf-8").partition("## Use the ops in your own code\n")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {}

    exec(compile(code, str(README), "exec"), names)

    assert set(names["apoz"]) >= {"relu", "layer1.0.relu", "layer1.0.relu#2"}
