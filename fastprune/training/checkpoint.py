"""Checkpoints that are whole or recognised as broken: ``last.pt`` and, before it, ``previous.pt``.

A file is what ``torch.save`` writes, and ``torch.load(..., weights_only=True)`` reads it; the
SHA-256 of its bytes stands in the comment that ends every zip archive.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from fastprune.errors import CheckpointError
from fastprune.files import write_atomically

__all__ = ["load_newest", "read", "save_rotating", "write"]

LAST = "last.pt"
PREVIOUS = "previous.pt"

State = dict[str, Any]

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_NO_COMMENT = b"\x00\x00"
"""An archive's last two bytes: the length of the comment that would follow."""


def write(path: Path, state: State, *, lasting: bool = True) -> None:
    """Puts ``state``, tensors and plain data, at ``path`` as `write_atomically` does."""
    # Past the archive in memory: that of a large network may be half of what there is.
    write_atomically(path, lambda file: _write(file, state), lasting=lasting)


def _write(file: Path, state: State) -> None:
    with file.open("w+b") as stream:
        written = _Hashed(stream)
        try:
            torch.save(state, cast("IO[bytes]", written))
        except RuntimeError:
            # torch ends its archive all the same, and tells of that alone.
            if written.refusal is None:
                raise
            raise written.refusal from None
        stream.seek(-len(_NO_COMMENT), os.SEEK_END)
        if stream.read() != _NO_COMMENT:
            raise ValueError(
                "torch.save wrote something that is not a zip archive without comment"
            )
        mark = _MARK + written.digest.hexdigest().encode()
        stream.seek(-len(_NO_COMMENT), os.SEEK_END)
        stream.write(len(mark).to_bytes(2, "little"))
        stream.write(mark)


class _Hashed(io.RawIOBase):
    """A file that is written from its beginning to its end, and the SHA-256 of what was."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.refusal: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.digest.update(content)
        try:
            return self._stream.write(content)
        except OSError as error:
            self.refusal = error
            raise


def read(path: Path, device: torch.device | str = "cpu") -> State:
    """The state at ``path``, its tensors on ``device``.

    Raises:
        CheckpointError: the file is not whole, or not one of these.
    """
    try:
        with path.open("rb") as stream:
            _check(path, stream)
            stream.seek(0)
            state = torch.load(stream, map_location=device, weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: written by another version: {reason}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of fastprune")
    return state


def _check(path: Path, stream: IO[bytes]) -> None:
    """Refuses a file whose bytes are not those that its comment has the digest of."""
    size = stream.seek(0, os.SEEK_END)
    if size >= _COMMENT + len(_NO_COMMENT):
        stream.seek(-_COMMENT, os.SEEK_END)
        mark = stream.read()
    if size < _COMMENT + len(_NO_COMMENT) or not mark.startswith(_MARK):
        raise CheckpointError(f"{path}: cut off, or not a checkpoint of fastprune")
    digest, left = hashlib.sha256(), size - _COMMENT - len(_NO_COMMENT)
    stream.seek(0)
    while left and (block := stream.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    digest.update(_NO_COMMENT)
    if left or digest.hexdigest().encode() != mark[len(_MARK) :]:
        raise CheckpointError(f"{path}: damaged, its checksum does not match")


def save_rotating(directory: Path, state: State) -> None:
    """Writes ``last.pt``; the one before stays as ``previous.pt``."""
    last = directory / LAST
    if last.exists():
        os.replace(last, directory / PREVIOUS)
    write(last, state)


def load_newest(
    directory: Path, device: torch.device | str, warn: Callable[[str], None]
) -> State | None:
    """The newest whole checkpoint of a folder, or None where there is none.

    A broken one is told of and removed, so that it never takes the place of a whole one.
    """
    for name in (LAST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        try:
            return read(path, device)
        except CheckpointError as error:
            before = name == LAST and (directory / PREVIOUS).exists()
            warn(f"{error}; going on from {PREVIOUS if before else 'the beginning'}")
            path.unlink()
    return None
