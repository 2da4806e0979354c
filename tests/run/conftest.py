"""Runs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Server:
    """Starts runs in a moment, each in a process of its own that is killed at a chosen event."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, given: dict[str, Any], folder: Path, event: str = "", count: int = 0) -> int:
        """The exit code of a run; -9 if it was killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"given": given, "folder": str(folder), "event": event, "count": count}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.process.communicate()
