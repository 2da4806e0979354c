"""One run, from its configuration to its report. Repeating it goes on where it stopped.

Every stage reads what it needs from the files of the stages before, also within one process, so a
run that was interrupted and one that was not compute the same.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fastprune import distributed
from fastprune.config import RunConfig
from fastprune.distributed import first, rank, world
from fastprune.errors import ConfigError, FastpruneError, nearest
from fastprune.run.checks import check_recipes
from fastprune.run.directory import RunDirectory, open_directory
from fastprune.run.ensemble import EnsembleRun
from fastprune.run.html.write import write_report
from fastprune.run.networks import device_of, set_threads
from fastprune.run.pruning import PruningRun
from fastprune.training import choose_progress

__all__ = ["run"]

_ONCE = ("--fresh", "--fresh-search")
"""What is not repeated when a run goes on."""


def run(
    config: RunConfig,
    path: Path,
    *,
    fresh: bool = False,
    fresh_search: bool = False,
    until: str = "report",
    quiet: bool = False,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs what is left of a run and gives its report, or what the last stage found.

    Inside `fastprune.distributed.started` all ranks call it, and the first one writes.

    Args:
        config: what to run.
        path: the run directory.
        fresh: start anew.
        fresh_search: keep the baseline and start anew from the method on.
        until: the last stage to run; but for ``report`` its results are given.
        quiet: no progress, no messages.
        command: the command line that repeats the run, for the report.

    Raises:
        FastpruneError: what the user can mend; what was done so far is kept.
    """
    kind = EnsembleRun if config.method.ensemble else PruningRun
    if until not in kind.stages:
        raise ConfigError(f"--until: unknown stage {until!r}{nearest(until, kind.stages)}")
    device = device_of(config.device)
    distributed.join(device)
    set_threads(config.threads)
    check_recipes(config, device)
    progress = choose_progress(quiet=quiet or rank() > 0)
    with (
        open_directory(path, config, fresh=fresh, replan=fresh_search) as directory,
        closing(kind(config, directory, device, progress)) as this,
    ):
        this.repeat = shlex.join([*(p for p in command if p not in _ONCE), *_ranks()])
        if fresh_search:
            # First, since a search may have taken days, and what is refused replaces none.
            this.check(this.trace(this.fresh(config.seed).to(device)))
            first(lambda: directory.replan(config))
        if world() > 1:
            # By all at once: later the first rank may be the only one that asks for it.
            this.open()
        record = this.run_until(until)
        if until != "report":
            return {"stage": until, **record.results}
        first(lambda: _write_page(directory, this.say))
        report: dict[str, Any] = json.loads(directory.report.read_text())
        return report


def _ranks() -> list[str]:
    """What begins as many ranks as there are; they have a command of their own each."""
    if world() == 1 or os.environ.get("LOCAL_WORLD_SIZE") != str(world()):
        return []
    return ["--gpus", str(world())]


def _write_page(directory: RunDirectory, say: Callable[[str], object]) -> None:
    """Writes the report for people, where it is not there; after its stage, of which it tells.

    It has times in it, and is in no digest.
    """
    if directory.page.is_file():
        return
    try:
        write_report([directory.path])
    except FastpruneError as error:
        # The results stand; what is drawn of the files beside them may have been edited since.
        again = shlex.join(["fastprune", "report", str(directory.path)])
        say(f"{directory.page} is not written: {error}; then: {again}")
