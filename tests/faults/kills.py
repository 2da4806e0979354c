"""Runs of every method that are killed at random, against one of each that nobody disturbs.

    python tests/faults/kills.py FOLDER [KILLS] [--seed N] [--only NAME]…

A run is killed by SIGKILL at a random moment of a stage (a training step, a file's renaming, or a
time), begun again, killed in another stage, and so on, until it is done. What it leaves has to be
what the undisturbed run left, to the byte. A hundred kills if not told otherwise, as many of each
method. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fork_server import BEGIN, END, EVENTS, Server
from remains import differences
from tiny_runs import RUNS

from fastprune.config import make_config
from fastprune.run.stages import ENSEMBLE_STAGES, STAGES

__all__ = ["Campaign", "campaign"]


@dataclass(slots=True)
class Campaign:
    """What came of the kills of one method.

    Attributes:
        kills: how many hit a stage.
        events: how many there were of a kind.
        runs: that were killed and went on to their end.
        wrong: what was not as it should be, a line each.
    """

    kills: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


def campaign(
    server: Server, given: dict[str, Any], folder: Path, kills: int, draw: random.Random
) -> Campaign:
    """Kills runs of a configuration so many times, and compares what they leave.

    Args:
        server: starts them.
        given: the configuration.
        folder: for them all; made.
        kills: of all together.
        draw: chooses when.
    """
    whole, counts = folder / "whole", folder / "counts.json"
    folder.mkdir(parents=True)
    found = Campaign()
    if code := server.run(given, whole, counts=counts):
        found.wrong.append(f"undisturbed: exit code {code}")
        return found
    stages = ENSEMBLE_STAGES if make_config(given).method.ensemble else STAGES
    events: dict[str, dict[str, int]] = json.loads(counts.read_text())
    for number in itertools.count():
        if found.kills.total() >= kills:
            return found
        run = folder / str(number)
        for since in _targets(stages, draw):
            if found.kills.total() >= kills:
                break
            if since not in _open_stages(run, stages):
                # A kill came too late, and hit a later one.
                continue
            event = draw.choice([kind for kind in EVENTS if events[since].get(kind)])
            count = draw.randint(1, events[since][event])
            code = server.run(given, run, event, count, since=since)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                found.wrong.append(f"{run.name}: exit code {code}")
                return found
            found.kills[_hit(run, since, stages)] += 1
            found.events[event] += 1
        if code := server.run(given, run):
            found.wrong.append(f"{run.name}: exit code {code}, to its end")
        else:
            found.runs += 1
            found.wrong += [f"{run.name}/{line}" for line in differences(run, whole)]


def _targets(stages: tuple[str, ...], draw: random.Random) -> list[str]:
    """Where one run is to be killed: two times in a method's own stages, and now and then before
    the first stage or after the last.
    """
    often = ("plan", "group", "experts")
    found = [stage for stage in stages for _ in range(1 + (stage in often))]
    return [
        *([BEGIN] if draw.random() < 0.3 else []),
        *(stage for stage in found if stage in often or draw.random() < 0.7),
        *([END] if draw.random() < 0.3 else []),
    ]


def _open_stages(run: Path, stages: tuple[str, ...]) -> list[str]:
    """Where the run can still be killed."""
    left = [stage for stage in stages if not (run / f"stages/{stage}.json").is_file()]
    return [*([] if run.exists() else [BEGIN]), *left, END]


def _hit(run: Path, since: str, stages: tuple[str, ...]) -> str:
    """The stage that a kill hit."""
    now = _open_stages(run, stages)[-1 if since == END else 0]
    return BEGIN if not (run / "work").exists() else now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for all runs; what was there is removed")
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(RUNS), help="repeatable")
    asked = parser.parse_args()
    names = asked.only or list(RUNS)
    server, results = Server(), {}
    begun = time.monotonic()
    for number, name in enumerate(names):
        folder = asked.folder / name.replace(", ", "-").replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        # As many of each; what is left over, of the first.
        kills = len(range(number, asked.kills, len(names)))
        draw = random.Random(f"{asked.seed} {name}")
        results[name] = found = campaign(server, RUNS[name], folder, kills, draw)
        said = "; ".join(found.wrong[:5]) or "the same bytes"
        print(
            f"{name}: {found.kills.total()} kills in {found.runs} runs, {said} "
            f"({time.monotonic() - begun:.0f} s)",
            flush=True,
        )
        if not found.wrong:
            shutil.rmtree(folder)
    server.close()
    _print_table(results)
    sys.exit(any(found.wrong for found in results.values()))


def _print_table(results: dict[str, Campaign]) -> None:
    stages = list(dict.fromkeys([BEGIN, *STAGES[:-1], *ENSEMBLE_STAGES, END]))
    stages.remove("report")
    stages.insert(-1, "report")
    print(f"\n{'kills in':20}" + "".join(f"{stage:>9}" for stage in stages) + f"{'all':>9}")
    for name, found in results.items():
        row = "".join(f"{found.kills[stage] or '':>9}" for stage in stages)
        print(f"{name:20}{row}{found.kills.total():>9}")
    kills = sum((found.kills for found in results.values()), Counter())
    print(f"{'all':20}" + "".join(f"{kills[s]:>9}" for s in stages) + f"{kills.total():>9}")
    events = sum((found.events for found in results.values()), Counter())
    print("at a " + ", ".join(f"{event}: {events[event]}" for event in EVENTS))
    wrong = sum(len(found.wrong) for found in results.values())
    print(f"{kills.total()} kills, {wrong} differences")


if __name__ == "__main__":
    main()
