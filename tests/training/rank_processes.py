"""Ranks of a task, for tests."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Ranks"]


class Ranks:
    """Starts the ranks of a task in a moment, by a process that has imported everything."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("rank_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        world: int,
        file: Path,
        name: str,
        *arguments: Any,
        started: bool = True,
        timeout: float = 120,
        expected: tuple[str, ...] = (),
    ) -> list[Any]:
        """What a function of a file gives on each rank; None where it was killed.

        Args:
            world: how many ranks.
            file: with the function.
            name: of the function.
            arguments: plain data.
            started: whether the ranks know each other before it is called.
            timeout: seconds that they wait for each other.
            expected: errors that may end it, by the names of their classes.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            order = {
                "world": world,
                "file": str(file),
                "name": name,
                "arguments": arguments,
                "started": started,
                "timeout": timeout,
                "expected": expected,
                "folder": folder,
            }
            print(json.dumps(order), file=self.process.stdin, flush=True)
            codes = json.loads(self.process.stdout.readline())
            answers = [Path(folder) / str(number) for number in range(world)]
            found = [json.loads(a.read_text()) if a.exists() else None for a in answers]
        if not expected:
            assert not any(codes), (codes, found)
        return found
