"""Keeping two runs out of one directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fastprune.errors import ConfigError

__all__ = ["locked"]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds a file, made if need be, that says who uses the folder it lies in.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """
    stream = None
    while stream is None:
        stream = _lock(file)
    with stream:
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _lock(file: Path) -> IO[str] | None:
    """The file, locked; None if a run that was refused removed it before it was."""
    path = file.parent
    try:
        stream: IO[str] = file.open("a+")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write there: {error.strerror}") from None
    try:
        # A record lock rather than flock: data loader workers that outlive a killed run by seconds
        # inherit an flock with the open file and would keep the next run out; not record locks.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with stream:
            stream.seek(0)
            owner = stream.read().strip()
        raise ConfigError(
            f"{path}: another run is using this directory (process {owner or 'unknown'}); "
            "wait for it, or use another --out"
        ) from None
    if os.fstat(stream.fileno()).st_nlink:
        return stream
    stream.close()
    return None
