"""Keeping two runs out of one directory, and all ranks of a run in it."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fastprune.distributed import first, gathered, world
from fastprune.errors import ConfigError, RankError
from fastprune.files import TEMPORARY

__all__ = ["check_shared", "locked"]


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
        try:
            # Not by the stream, which would try it again when it is closed.
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), str(os.getpid()).encode())
        except OSError as error:
            file.unlink()
            raise ConfigError(f"{file.parent}: cannot write there: {error.strerror}") from None
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


def check_shared(folder: Path) -> None:
    """Refuses a folder that not all ranks see as the first does.

    Raises:
        RankError: on some machines other files are there, or none.
    """
    if world() == 1:
        return
    name = first(lambda: _marked(folder))
    seen = gathered((socket.gethostname(), (folder / name).is_file()))
    first(lambda: (folder / name).unlink())
    blind = [f"{number} ({host})" for number, (host, sees) in enumerate(seen) if not sees]
    if blind:
        raise RankError(
            f"--out {folder}: what rank 0 ({seen[0][0]}) writes there is not seen by rank "
            f"{', '.join(blind)}; expected a folder of a file system that all machines share"
        )


def _marked(folder: Path) -> str:
    name = f"{TEMPORARY}{secrets.token_hex(8)}"
    (folder / name).touch()
    return name
