"""Where input pipelines tell what they do; `fastprune.training.Progress` is one such place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["SILENT", "Task", "Teller"]


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, n: int = 1) -> None:
        """``n`` more units are done."""


class Teller(Protocol):
    """Told of long work, and of what the user should know."""

    def start(self, title: str, total: int, unit: str = "") -> AbstractContextManager[Task]:
        """A context in which ``total`` units of work are done."""

    def note(self, message: str) -> None:
        """Something the user should know, on a line of its own."""


class _Silent:
    @contextmanager
    def start(self, title: str, total: int, unit: str = "") -> Iterator[Task]:
        yield self

    def advance(self, n: int = 1) -> None:
        return None

    def note(self, message: str) -> None:
        return None


SILENT: Teller = _Silent()
"""Tells nobody; ``bad_images`` of a pipeline still names its files."""
