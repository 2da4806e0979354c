"""A crew with an evaluator that trains nothing, as a program of its own.

    python crew_script.py

Prints what came of it, a JSON line each; at the end the numbers of its processes, which then wait
for ever.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from fastprune.errors import DataError, TrainingError
from fastprune.graph import PruningPlan
from fastprune.training._crew import Crew
from fastprune.training.evaluator import Outcome, Request

PLAN = PruningPlan({"a": (0,)}, {"a": 2})


class Evaluator:
    """Does what the name of a request says."""

    def outcome(self, request: Request) -> Outcome:
        word, _, number = request.name.partition(" ")
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "unreadable":
            raise DataError("data.root: no such image")
        if word == "large":
            # Too large beside others: a folder has a file for each that is under way.
            mine = Path(number) / str(os.getpid())
            mine.touch()
            time.sleep(0.3)
            beside = len(list(Path(number).iterdir()))
            mine.unlink()
            if beside > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        if word == "wait":
            time.sleep(float(number))
        return Outcome(float(os.getpid()), epochs=torch.get_num_threads(), seconds=0.0)


SAID: list[str] = []


def told(line: str) -> None:
    SAID.append(line)


def refusing() -> Evaluator:
    raise DataError("data.root: gone")


def say(**found: object) -> None:
    print(json.dumps(found), flush=True)


def asked(crew: Crew, *names: str) -> dict[str, object]:
    try:
        found = list(crew.outcomes([Request(PLAN, name=name) for name in names]))
    except (DataError, TrainingError) as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "names": [request.name for request, _ in found],
        "pids": sorted({outcome.fitness for _, outcome in found}),
        "threads": sorted({outcome.epochs for _, outcome in found}),
    }


def main() -> None:
    torch.set_num_threads(2)
    with closing(Crew(Evaluator, 2)) as crew:
        # Until both are there: one may have been slow to start.
        while len({*asked(crew, "wait 0.3", "wait 0.3")["pids"]}) < 2:  # type: ignore[misc]
            pass
        # The first to end come first.
        say(**asked(crew, "wait 2", *["wait 0.2"] * 3))
        say(**asked(crew, "unreadable"))
        say(**asked(crew))
        # An error of one candidate does not end the crew.
        say(**asked(crew, "wait 0"))
        with tempfile.TemporaryDirectory() as folder, closing(Crew(Evaluator, 2, told)) as other:
            while len({*asked(other, "wait 0.3", "wait 0.3")["pids"]}) < 2:  # type: ignore[misc]
                pass
            say(**asked(other, *[f"large {folder}"] * 4), said=SAID)
        # What is under way does not keep an error from being said.
        begun = time.monotonic()
        say(**asked(crew, "wait 600", "unreadable"))
    say(left=len(multiprocessing.active_children()), soon=time.monotonic() - begun < 60)
    with closing(Crew(Evaluator, 2)) as crew:
        say(**asked(crew, "die"))
    say(left=len(multiprocessing.active_children()))
    with closing(Crew(refusing, 1)) as crew:
        say(**asked(crew, "wait 0"))
    with closing(Crew(Evaluator, 2)) as crew:
        asked(crew, "wait 0.5", "wait 0.5")
        say(pids=[child.pid for child in multiprocessing.active_children()])
        asked(crew, "wait 600", "wait 600")


if __name__ == "__main__":
    main()
