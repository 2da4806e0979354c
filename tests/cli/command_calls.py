"""Commands as users type them, in this process, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fastprune.cli import app

__all__ = ["CONFIG", "TINY", "answer", "call", "refusal"]

TINY = "fastprune.testing.methods:TinyResidual"
CONFIG: dict[str, Any] = {
    "model": {"name": TINY},
    "data": {"name": "digits", "train_limit": 96, "test_limit": 40, "batch_size": 32},
    "baseline": {"epochs": 1, "lr": 0.05},
    "method": {"name": "one_shot"},
    "prune": {"budget": {"macs": 0.5}},
    "device": "cpu",
    "latency": {"repeats": 3, "batch_size": 1},
}


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def answer(*arguments: str | Path) -> Any:
    """What a command that ends well prints as JSON."""
    code, out, err = call(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def refusal(*arguments: str | Path) -> str:
    """What a command says when it cannot do what it is asked."""
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    return err
