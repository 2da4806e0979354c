"""Runs in processes of their own: an order a line on standard input, an exit code a line back.

Everything is imported once, so that a run starts in a moment. A run is killed (SIGKILL, by itself)
at the n-th event of a kind: before or after a file is renamed to its name, after a training step,
or when a stage's work is done and only its record is missing. Or it is killed from outside after n
milliseconds, wherever it is.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401
import torch
import torchvision  # noqa: F401

from fastprune.config import make_config
from fastprune.run import pipeline
from fastprune.run.directory import RunDirectory


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(function: Callable[..., Any], count: int, *, before: bool) -> Callable[..., Any]:
    seen = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if before and seen == count:
            die()
        result = function(*args, **kwargs)
        if not before and seen == count:
            die()
        return result

    return wrapped


def arrange(event: str, count: int) -> None:
    if event == "step":
        torch.optim.SGD.step = counted(torch.optim.SGD.step, count, before=False)
    elif event.endswith("a rename"):
        os.replace = counted(os.replace, count, before=event.startswith("before"))
    elif event.startswith("stage"):
        finish = RunDirectory.finish

        def finishing(self: RunDirectory, stage: str, *args: Any, **kwargs: Any) -> Any:
            if stage == event.split()[1]:
                die()
            return finish(self, stage, *args, **kwargs)

        RunDirectory.finish = finishing


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            if order["count"]:
                arrange(order["event"], order["count"])
            given, folder = make_config(order["given"]), Path(order["folder"])
            pipeline.run(given, folder, quiet=True, until=order["until"])
            os._exit(0)
        if order["event"] == "time" and order["count"]:
            with os.fdopen(os.pidfd_open(child)) as ended:
                select.select([ended], [], [], order["count"] / 1000)
            # Not waited for yet, so the number is still the child's, also if it ended.
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
