"""Runs in processes of their own: an order a line on standard input, an exit code a line back.

Everything is imported once, so that a run starts in a moment. A run is killed (SIGKILL, by itself)
at the n-th event of a kind: before or after a file is renamed to its name, after a training step,
or when a stage's work is done and only its record is missing. Or it is killed from outside after n
milliseconds, wherever it is. Events are counted from the run's beginning, or from that of a stage.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401
import torch
import torchvision  # noqa: F401

from fastprune.config import make_config
from fastprune.run import pipeline
from fastprune.run.directory import RunDirectory

__all__ = ["BEGIN", "END", "EVENTS", "Server"]

EVENTS = ("step", "before a rename", "after a rename", "time")
BEGIN, END = "begin", "end"
"""Beside the stages: what comes before the first, and after the last."""


class Server:
    """Starts runs in a moment, each in a process of its own that is killed at a chosen event."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        given: dict[str, Any],
        folder: Path,
        event: str = "",
        count: int = 0,
        *,
        since: str = BEGIN,
        until: str = "report",
        counts: Path | None = None,
    ) -> int:
        """The exit code of a run; -9 if it was killed.

        Args:
            given: its configuration.
            folder: its directory.
            event: one of `EVENTS`, or ``stage NAME``.
            count: which one of them kills it; of time, after how many milliseconds.
            since: the stage, or `END`, from whose beginning on they are counted.
            until: the last stage to run.
            counts: where to write how many of each event there were in each stage.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"given": given, "folder": str(folder), "event": event, "count": count}
        order |= {"since": since, "until": until, "counts": str(counts) if counts else None}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the server."""
        self.process.communicate()


class Watch:
    """In which stage the run in a folder is, and what happened in it so far."""

    def __init__(self, folder: Path, enters: Callable[[str], object]) -> None:
        self.folder = folder
        self.stage = BEGIN
        self.counts: dict[str, Counter[str]] = {BEGIN: Counter()}
        self._enters = enters
        self._since = time.monotonic()
        work, finish = RunDirectory.work, RunDirectory.finish

        def working(directory: RunDirectory, stage: str, *args: Any) -> Path:
            # Experts are runs of their own, in folders of this one.
            if directory.path == folder:
                self.enter(stage)
            return work(directory, stage, *args)

        def finishing(directory: RunDirectory, stage: str, *args: Any, **kwargs: Any) -> Any:
            record = finish(directory, stage, *args, **kwargs)
            if directory.path == folder and stage == "report":
                self.enter(END)
            return record

        RunDirectory.work, RunDirectory.finish = working, finishing  # type: ignore[method-assign]
        self._enters(BEGIN)

    def enter(self, stage: str) -> None:
        self.leave()
        self.stage = stage
        self.counts.setdefault(stage, Counter())
        self._enters(stage)

    def leave(self) -> None:
        now = time.monotonic()
        self.counts[self.stage]["time"] += round(1000 * (now - self._since))
        self._since = now


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(watch: Watch, order: dict[str, Any]) -> None:
    """Lets the run be killed at its event, and all events be counted."""
    seen = 0

    def happened(event: str) -> None:
        nonlocal seen
        watch.counts[watch.stage][event] += 1
        if event == order["event"] and order["since"] in watch.counts:
            seen += 1
            if seen == order["count"]:
                die()

    def told(function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before:
                happened(before)
            result = function(*args, **kwargs)
            happened(after)
            return result

        return wrapped

    torch.optim.SGD.step = told(torch.optim.SGD.step, "", "step")  # type: ignore[method-assign]
    os.replace = told(os.replace, "before a rename", "after a rename")
    if order["event"].startswith("stage"):
        finish = RunDirectory.finish

        def finishing(directory: RunDirectory, stage: str, *args: Any, **kwargs: Any) -> Any:
            if stage == order["event"].split()[1]:
                die()
            return finish(directory, stage, *args, **kwargs)

        RunDirectory.finish = finishing  # type: ignore[method-assign]


def child(order: dict[str, Any], begun: int) -> None:
    """The run; it says by a byte when time begins to count."""
    torch.set_num_threads(1)

    def enters(stage: str) -> None:
        if stage == order["since"]:
            os.write(begun, b"!")

    watch = Watch(Path(order["folder"]), enters)
    arrange(watch, order)
    given, folder = make_config(order["given"]), Path(order["folder"])
    pipeline.run(given, folder, quiet=True, until=order["until"])
    watch.leave()
    if order["counts"] is not None:
        Path(order["counts"]).write_text(json.dumps(watch.counts))


def kill_in_time(process: int, begun: int, milliseconds: int) -> None:
    """Kills a run so long after it said that time counts, unless it ends before."""
    with os.fdopen(os.pidfd_open(process)) as ended:
        if ended not in select.select([ended, begun], [], [])[0]:
            select.select([ended], [], [], milliseconds / 1000)
    # Not waited for yet, so the number is still the child's, also if it ended.
    os.kill(process, signal.SIGKILL)


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        begun, say = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(begun)
            code = 1
            try:
                child(order, say)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(say)
        if order["event"] == "time" and order["count"]:
            kill_in_time(process, begun, order["count"])
        _, status = os.waitpid(process, 0)
        os.close(begun)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
