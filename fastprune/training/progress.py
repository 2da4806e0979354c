"""Showing how far long work is: a bar on a terminal, now and then a line elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars

__all__ = [
    "BarProgress",
    "LineProgress",
    "Progress",
    "SilentProgress",
    "Task",
    "choose_progress",
    "duration",
]

_LINE_EVERY = 10.0


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """``n`` more units are done; ``figures`` replace what is shown beside them."""


class Progress(Protocol):
    """Where work reports how far it is."""

    def start(
        self, title: str, total: int, unit: str = "", *, done: int = 0
    ) -> AbstractContextManager[Task]:
        """A context in which ``total`` units of work are done.

        Args:
            title: what is being done.
            total: how much there is.
            unit: what is counted, in the plural.
            done: how much was done before, by an interrupted run.
        """

    def note(self, message: str) -> None:
        """Something the user should know, on a line of its own."""


def choose_progress(*, quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """Bars if ``stream`` (standard error) is a terminal, lines otherwise; nothing if ``quiet``."""
    stream = stream or sys.stderr
    if quiet:
        return SilentProgress()
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def start(self, title: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[Task]:
        yield _SilentTask()

    def note(self, message: str) -> None:
        return None


class _SilentTask:
    def advance(self, n: int = 1, **figures: float) -> None:
        return None


class LineProgress:
    """Plain lines, at most one every ten seconds and one at the end of each piece of work.

    Work inside work is said behind the work it is a part of, on one line.

    Args:
        stream: where to write.
        clock: seconds, from any start.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = clock()
        self._open: list[_LineTask] = []

    @contextmanager
    def start(self, title: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[Task]:
        task = _LineTask(self, title, total, unit, done)
        self._open.append(task)
        try:
            yield task
            # Short work has said nothing so far and says nothing now, and a part of other work
            # neither, lest a search of thousands of evaluations fill the screen.
            if task.stale and len(self._open) == 1:
                self.show()
        finally:
            self._open.remove(task)

    def note(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def show(self) -> None:
        """A line about the work under way."""
        self.note(" | ".join(task.line() for task in self._open))

    def show_if_due(self) -> None:
        """The same, where it is time."""
        now = self._clock()
        if now - self._last >= _LINE_EVERY:
            self._last = now
            self.show()

    def now(self) -> float:
        """Seconds on this progress's clock."""
        return self._clock()


class _LineTask:
    def __init__(self, lines: LineProgress, title: str, total: int, unit: str, done: int) -> None:
        self._lines, self._title, self._total, self._unit = lines, title, total, unit
        self._done = self._before = done
        self._begun = lines.now()
        self._figures: dict[str, float] = {}
        self._said = self.stale = False

    def advance(self, n: int = 1, **figures: float) -> None:
        self._done += n
        self._figures.update(figures)
        # Only what has been on a line before can be out of date there.
        self.stale = self._said
        self._lines.show_if_due()

    def line(self) -> str:
        """What it says now."""
        self.stale, self._said = False, True
        taken, made = self._lines.now() - self._begun, self._done - self._before
        parts = [f"{self._title}: {self._done}/{self._total} {self._unit}".rstrip()]
        if made > 0 and self._done < self._total:
            parts.append(f"{duration(taken / made * (self._total - self._done))} left")
        return ", ".join(parts + _shown(self._figures))


class BarProgress:
    """Bars with the time left; work inside work gets a bar below."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._bars: RichBars | None = None
        self._open = 0

    @contextmanager
    def start(self, title: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[Task]:
        if self._bars is None:
            self._bars = RichBars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        self._open += 1
        bars = self._bars
        row = bars.add_task(title, total=total, completed=done, unit=unit, figures="")
        try:
            yield _BarTask(bars, row)
        finally:
            bars.remove_task(row)
            self._open -= 1
            if not self._open:
                bars.stop()
                self._bars = None

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class _BarTask:
    def __init__(self, bars: RichBars, row: TaskID) -> None:
        self._bars, self._row = bars, row
        self._figures: dict[str, float] = {}

    def advance(self, n: int = 1, **figures: float) -> None:
        if figures:
            self._figures.update(figures)
            self._bars.update(self._row, advance=n, figures=", ".join(_shown(self._figures)))
        else:
            self._bars.update(self._row, advance=n)


def _shown(figures: dict[str, float]) -> list[str]:
    return [_shown_one(name, value) for name, value in figures.items()]


def _shown_one(name: str, value: float) -> str:
    if name == "images_per_second":
        return f"{value:,.0f} images/s"
    if name == "data_wait":
        return f"data wait {value:.1%}"
    return f"{name.replace('_', ' ')} {value:.4g}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
