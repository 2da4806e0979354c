"""``trials.jsonl``: every candidate of a search, a line each, in the order they came to be known.

It is all that a search keeps: told again in the same order, it is where it was.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fastprune.distributed import first, rank
from fastprune.files import named, write_atomically

__all__ = ["Trial", "TrialLog", "counts", "front", "steps_in_common"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate and its outcome.

    Attributes:
        number: from 0 on, in the order in which the search asked.
        phase: of the search.
        code: what the search asked about.
        widths: channels that stay, by group.
        cost: macs, params and channels of the pruned network.
        plan: digest of its plan.
        fitness: percent.
        epochs: that it was trained; 0 where it was known.
        seconds: of training and measuring.
        repeats: number of the earlier candidate with the same plan.
        stopped: whether it was given up before its last epoch, or the last image.
        diverged: whether it came to numbers that are not finite; fitness is then 0.
        images: that fitness was measured on; None says all of the split, 0 that it was known.
        common: share of its steps that were run for candidates before it; None where each
            candidate is run by itself.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    number: Annotated[int, Field(ge=0)]
    phase: str
    code: tuple[int, ...]
    widths: dict[str, int]
    cost: dict[str, int]
    # The name of a folder, which is removed by it.
    plan: Annotated[str, Field(pattern=r"^\w+$")]
    fitness: Annotated[float, Field(allow_inf_nan=False)]
    epochs: int
    seconds: Annotated[float, Field(allow_inf_nan=False)]
    repeats: int | None = None
    stopped: bool = False
    diverged: bool = False
    images: int | None = None
    common: float | None = None


_TRIAL = TypeAdapter(Trial)


class TrialLog:
    """The trials so far, on disk; of several ranks the first writes, and all know the same.

    Args:
        path: the file; from the first line on that is no trial, such as the part of one that a
            kill left, or a candidate a second time, it is cut off.
        read_only: leave the file as it is; `add` is not for this.

    Attributes:
        trials: by number.
        best: the trial of the highest fitness, the first of equals; None where there is none.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._clear()
        whole = []
        for line in first(lambda: _lines(path)):
            trial = _parsed(line)
            if trial is None or trial.number in self.trials:
                break
            whole.append(line)
            self._note(trial)
        if not read_only:
            first(lambda: write_atomically(path, b"".join(whole)))

    def __iter__(self) -> Iterator[Trial]:
        return iter(sorted(self.trials.values(), key=lambda trial: trial.number))

    def __len__(self) -> int:
        return len(self.trials)

    def of_plan(self, digest: str) -> Trial | None:
        """The trial that evaluated a plan."""
        return self._by_plan.get(digest)

    def add(self, *trials: Trial) -> None:
        """Appends trials, all or none; no end of this process loses them any more.

        Nobody waits for the disk: a machine that goes down loses what came in its last half
        minute, and those candidates are trained again.
        """
        if not trials:
            return
        lines = _written(trials)
        if rank() == 0:
            # In one write, which no kill comes into the middle of.
            with named(self._path), self._path.open("ab", buffering=0) as stream:
                if stream.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for trial in trials:
            self._note(trial)

    def cut(self, number: int) -> None:
        """Forgets the trial of this number and all after it, on disk too."""
        stay = [trial for trial in self.trials.values() if trial.number < number]
        first(lambda: write_atomically(self._path, _written(stay)))
        self._clear()
        for trial in stay:
            self._note(trial)

    def _clear(self) -> None:
        self.trials: dict[int, Trial] = {}
        self._by_plan: dict[str, Trial] = {}
        self.best: Trial | None = None

    def _note(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        if trial.repeats is None:
            self._by_plan[trial.plan] = trial
        if self.best is None or _rank(trial) > _rank(self.best):
            self.best = trial


def counts(trials: Sequence[Trial], evaluated: str) -> dict[str, int]:
    """How many candidates there were, and what became of those that were evaluated.

    Args:
        trials: of a search.
        evaluated: what to call the number of those whose plan was not known before.
    """
    new = [trial for trial in trials if trial.repeats is None]
    return {
        "candidates": len(trials),
        evaluated: len(new),
        "given_up": sum(trial.stopped for trial in new),
        "diverged": sum(trial.diverged for trial in new),
    }


def steps_in_common(trials: Sequence[Trial]) -> float:
    """The mean share of steps that candidates evaluated together did not have to run, 0 to 1."""
    shares = [trial.common for trial in trials if trial.repeats is None and trial.common]
    together = sum(trial.repeats is None for trial in trials)
    return round(sum(shares) / together, 4) if together else 0.0


def front(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Candidates that no other one equals with fewer MACs, those with the fewest first.

    Whose outcome is only an estimate, or was known from another, is left out.
    """
    found: list[dict[str, Any]] = []
    whole = (t for t in trials if t.repeats is None and not t.stopped and not t.diverged)
    for trial in sorted(whole, key=lambda t: (t.cost["macs"], -t.fitness, t.number)):
        if not found or trial.fitness > found[-1]["fitness"]:
            found.append(
                {
                    "number": trial.number,
                    "code": list(trial.code),
                    "macs": trial.cost["macs"],
                    "params": trial.cost["params"],
                    "fitness": trial.fitness,
                }
            )
    return found


def _rank(trial: Trial) -> tuple[float, int]:
    return trial.fitness, -trial.number


def _written(trials: Iterable[Trial]) -> bytes:
    return b"".join(json.dumps(asdict(trial)).encode() + b"\n" for trial in trials)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _parsed(line: bytes) -> Trial | None:
    """None for what is not a whole line of this file."""
    try:
        return _TRIAL.validate_json(line, strict=True) if line.endswith(b"\n") else None
    except ValidationError:
        return None
