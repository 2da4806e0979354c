"""Decoded evaluation images on disk: written once, whole or not there, checked when first read.

A file is a header of 4096 bytes, a line of JSON; the pixels, ``[N, 3, size, size]`` uint8; and a
tail, JSON too: CRC-32 of every block of images, and the files that could not be read. CRC-32 goes
through 4 GB/s on the machine where BLAKE2b does 0.9, and is to find accidents, not forgeries.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastprune.data._bad import BadImages
from fastprune.data._dataset import Files, ResizedCrop
from fastprune.data._decode import DECODER, Bad
from fastprune.data._listing import folder_of, listing_of
from fastprune.data._pipeline import Feed
from fastprune.data._telling import Teller
from fastprune.data._workers import Made, Workers
from fastprune.errors import DataError
from fastprune.files import TEMPORARY, digest_of, locked, write_atomically

__all__ = ["Cache", "Damaged", "open_cache", "unsupported"]

_MAGIC = "fastprune decoded images"
_FORMAT = 1
_HEADER = 4096
_BLOCK = 64
"""Images of a block: 10 MB at 224 pixels, checked in 2 ms."""

_NAME = re.compile(r"([0-9a-f]{12})-([0-9a-f]{12})-[0-9a-f]{16}\.images")


class Damaged(Exception):
    """A cache is not what was written; made again, it will be."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the cache of a feed lies, and what it must say of itself.

    Attributes:
        path: its name has the folder of the images, the state of that folder, and the key.
        key: digest of all that the pixels follow from.
    """

    path: Path
    key: str


def unsupported(feed: Feed) -> str | None:
    """Why the images of a feed are not kept decoded, or None."""
    if not isinstance(feed.source, Files) or not isinstance(feed.transform, ResizedCrop):
        return "its images are in memory"
    if feed.augment:
        return "its images are altered at random"
    if feed.cache is None:
        return "data.cache is false"
    needed = len(feed.indices) * _image_bytes(feed)
    if needed > feed.cache_limit:
        return (
            f"its decoded images would take {needed / 1e9:.3g} GB, and "
            f"data.cache_limit={feed.cache_limit / 1e9:g}"
        )
    folder = next(f for f in (feed.cache, *feed.cache.absolute().parents) if f.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"data.cache={feed.cache} cannot be written to"
    free = shutil.disk_usage(folder).free
    if needed > free and not _place(feed).path.exists():
        return (
            f"its decoded images would take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
            f"free at data.cache={feed.cache}"
        )
    return None


class Cache:
    """An opened cache.

    Attributes:
        pixels: ``[N, 3, size, size]`` uint8, mapped from disk; row r is image ``feed.indices[r]``.
        bad: rows whose file could not be read; they are black.
        path: the file.
    """

    def __init__(self, place: _Place, feed: Feed) -> None:
        self.path = place.path
        try:
            header, tail = _described(place, feed)
            size = _size(feed)
            # Copy-on-write: torch warns of arrays that cannot be written to. Nobody writes to it.
            mapped = np.memmap(
                place.path, np.uint8, "c", _HEADER, (header["images"], 3, size, size)
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise Damaged(f"{place.path}: not a whole cache of decoded images") from None
        self.pixels = torch.from_numpy(mapped)
        self.bad = {row: Bad(path, reason) for row, path, reason in tail["bad"]}
        self._sums: list[int] = tail["sums"]
        self._checked = np.zeros(len(self._sums), bool)

    def check(self, rows: npt.NDArray[np.int64]) -> None:
        """Compares the checksums of the blocks that rows are in, each block once.

        Raises:
            Damaged: the pixels are not those that were written.
        """
        blocks = np.unique(rows // _BLOCK)
        for block in blocks[~self._checked[blocks]].tolist():
            pixels = self.pixels[block * _BLOCK : (block + 1) * _BLOCK].numpy()
            if zlib.crc32(pixels.reshape(-1).data) != self._sums[block]:
                raise Damaged(f"{self.path}: damaged in images {block * _BLOCK} and following")
            self._checked[block] = True


def open_cache(feed: Feed, teller: Teller, bad: BadImages) -> Cache:
    """The cache of a feed, made where it is missing or not whole.

    Args:
        feed: one that `unsupported` has nothing against.
        teller: told of a damaged cache, and of decoding as it goes on.
        bad: counts the files that decoding cannot read.

    Raises:
        DataError: more files are bad than may be, a file changed, or the cache cannot be written.
    """
    place = _place(feed)
    try:
        return _opened(place, feed, teller, bad)
    except OSError as error:
        raise DataError(
            f"data.cache: {place.path.parent} cannot be used: {error.strerror}; give another "
            "folder, or false to keep no decoded images"
        ) from None


def _opened(place: _Place, feed: Feed, teller: Teller, bad: BadImages) -> Cache:
    place.path.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.path.parent / "lock", lambda: teller.note(_waiting(place))):
        if place.path.exists():
            try:
                found = Cache(place, feed)
            except Damaged as error:
                teller.note(f"{error}; decoding again")
            else:
                # What was not used for longest gives way first.
                os.utime(place.path)
                return found
        _remove_leftovers(place)
        write_atomically(place.path, lambda path: _write(path, place, feed, teller, bad))
        _make_room(place, feed.cache_limit)
        return Cache(place, feed)


def _waiting(place: _Place) -> str:
    return f"waiting for another process that decodes images into {place.path.parent}"


def _size(feed: Feed) -> int:
    if not isinstance(feed.transform, ResizedCrop):
        raise ValueError(f"expected ResizedCrop, got {feed.transform}")
    return feed.transform.size


def _image_bytes(feed: Feed) -> int:
    return 3 * _size(feed) ** 2


def _place(feed: Feed) -> _Place:
    source, transform = feed.source, feed.transform
    if not isinstance(source, Files) or not isinstance(transform, ResizedCrop) or not feed.cache:
        raise ValueError("expected image files, a ResizedCrop and a folder")
    whole, chosen = listing_of(source), listing_of(source, feed.indices)
    folder = hashlib.sha256(os.fsencode(os.path.abspath(folder_of(source)))).hexdigest()
    state = digest_of([_FORMAT, DECODER, whole.content, whole.times])
    key = digest_of(
        [_FORMAT, DECODER, chosen.content, chosen.times, transform.size, transform.resize]
    )
    return _Place(feed.cache / f"{folder[:12]}-{state[:12]}-{key[:16]}.images", key)


def _described(place: _Place, feed: Feed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and tail of a file, if they are whole and of this feed; else a ValueError."""
    with place.path.open("rb") as stream:
        header = json.loads(stream.read(_HEADER))
        start = _HEADER + header["images"] * _image_bytes(feed)
        stream.seek(start)
        tail = stream.read()
    wanted = {"magic": _MAGIC, "version": _FORMAT, "key": place.key, "images": len(feed.indices)}
    if header != {**wanted, "size": _size(feed), "tail": len(tail), "sum": zlib.crc32(tail)}:
        raise ValueError("not what was asked for")
    return header, json.loads(tail)


def _write(path: Path, place: _Place, feed: Feed, teller: Teller, bad: BadImages) -> None:
    images = len(feed.indices)
    sums: list[int] = []
    holes: list[tuple[int, str, str]] = []
    chunks = [feed.indices[first : first + _BLOCK] for first in range(0, images, _BLOCK)]
    workers = Workers(feed, _planes, len(chunks))
    with (
        path.open("wb") as stream,
        teller.start("decoding evaluation images", images, "images") as task,
    ):
        stream.write(bytes(_HEADER))
        for first, made in zip(range(0, images, _BLOCK), workers.batches(chunks, 0), strict=True):
            if made.unusable is not None:
                raise DataError(f"{made.unusable.path}: {made.unusable.reason}")
            bad.add(made.bad)
            pixels = _with_holes(made)
            missing = set(range(len(pixels))) - set(made.rows.tolist())
            holes += [(first + r, *b) for r, b in zip(sorted(missing), made.bad, strict=True)]
            content = pixels.reshape(-1).data
            sums.append(zlib.crc32(content))
            stream.write(content)
            task.advance(len(pixels))
        tail = json.dumps({"sums": sums, "bad": holes}).encode()
        stream.write(tail)
        header = {
            "magic": _MAGIC,
            "version": _FORMAT,
            "key": place.key,
            "images": images,
            "size": _size(feed),
            "tail": len(tail),
            "sum": zlib.crc32(tail),
        }
        stream.seek(0)
        stream.write(json.dumps(header).encode().ljust(_HEADER - 1) + b"\n")
    workers.close()


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(0, 3, 1, 2).contiguous()


def _with_holes(made: Made) -> npt.NDArray[np.uint8]:
    """The pixels of a batch, black where a file could not be read."""
    read: npt.NDArray[np.uint8] = made.pixels.numpy()
    if not made.bad:
        return read
    pixels = np.zeros((len(read) + len(made.bad), *read.shape[1:]), np.uint8)
    pixels[made.rows.numpy()] = read
    return pixels


def _remove_leftovers(place: _Place) -> None:
    """Removes what a killed process left half-written; the lock says that nobody is at it now."""
    for leftover in place.path.parent.glob(f"{TEMPORARY}*.images"):
        leftover.unlink(missing_ok=True)


def _make_room(place: _Place, limit: int) -> None:
    """Removes caches of the same folder as it was before, then what was not used for longest.

    A process that still reads one keeps it until it closes it.
    """
    mine = _NAME.fullmatch(place.path.name)
    others: list[tuple[float, int, Path]] = []
    for file in _caches(place.path.parent):
        parts = _NAME.fullmatch(file.name)
        if file == place.path or parts is None or mine is None:
            continue
        if parts[1] == mine[1] and parts[2] != mine[2]:
            file.unlink(missing_ok=True)
        else:
            others.append((file.stat().st_mtime, file.stat().st_size, file))
    room = limit - place.path.stat().st_size
    for _, size, file in sorted(others, reverse=True):
        room -= size
        if room < 0:
            file.unlink(missing_ok=True)


def _caches(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if _NAME.fullmatch(file.name))
