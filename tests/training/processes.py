"""Processes that have to end with the one that made them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def assert_they_end_together(process: subprocess.Popen[Any], pids: Sequence[int]) -> None:
    """Ctrl-C leaves them to the one that made them; where that is killed, they end too."""
    # A terminal sends ctrl-C to all of them; it is the one that made them that ends them.
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
