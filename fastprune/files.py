"""Files that are whole or not there: atomic writes and checksums. Standard library only."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "cache_folder",
    "digest_of",
    "locked",
    "named",
    "read_json",
    "sha256_of",
    "sync",
    "write_atomically",
    "write_json",
]

TEMPORARY = ".fastprune-tmp-"
"""How the names of half-written files begin; a crash may leave one behind, and nobody reads it."""


def cache_folder() -> Path | None:
    """The user's folder for what can be made again: ``$XDG_CACHE_HOME/fastprune``, by default
    ``~/.cache/fastprune``; None where there is no home folder.
    """
    # Where it is not absolute, the XDG specification has it left out of account.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not given.is_absolute():
        # Not Path.home, which raises for a user who has none, as many in a container.
        given = Path(os.path.expanduser("~/.cache"))
    return given / "fastprune" if given.is_absolute() else None


def write_atomically(
    path: Path, content: bytes | Callable[[Path], object], *, lasting: bool = True
) -> None:
    """Puts ``content`` at ``path``; a crash leaves the old file or the new one, never a part.

    Args:
        path: where; its folder must exist.
        content: the bytes, or a function that writes them to the temporary path it is given.
        lasting: wait for the disk, so that it also holds when the machine itself goes down.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with named(path):
        try:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                content(temporary)
            if lasting:
                sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if lasting:
            sync(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """A context of whose errors of the system ``path`` is the file.

    A full disk is noticed where an open file is written to, and that error names none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Any) -> None:
    """``content`` as indented JSON with a final newline, written atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, _encoded(text))


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where it is not there or is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def locked(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """A context that one process at a time is in.

    Args:
        path: the lock's file, made if need be; a process that dies leaves no lock behind.
        waiting: called once where another process is in it.
    """
    with path.open("a") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.lockf(stream, fcntl.LOCK_EX)
        # Closing the file gives the lock back.
        yield


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def digest_of(content: Any) -> str:
    """Hex SHA-256 of plain data, the same however its mappings are ordered."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(_encoded(text)).hexdigest()


def _encoded(text: str) -> bytes:
    """JSON in UTF-8; of file names that are none, the odd bytes escaped as JSON has it."""
    return text.encode(errors="backslashreplace")


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
