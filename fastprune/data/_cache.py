"""Decoded images on disk: written once, whole or not there, checked when first read.

A file is a header of 4096 bytes, a line of JSON; the pixels, one image after another; a table of
sizes, ``[N, 4]`` int32; and a tail, JSON too: CRC-32 of every block of images, and the files that
could not be read. CRC-32 goes through 4 GB/s on the machine where BLAKE2b does 0.9, and is to find
accidents, not forgeries.

Images for evaluation are kept as a network gets them, cut to ``[3, size, size]``. Those that are
altered at random are kept whole, ``[height, width, 3]``, their shorter side brought down to
``transform.resize``.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastprune.data._bad import BadImages
from fastprune.data._decode import Bad
from fastprune.data._pipeline import Feed
from fastprune.data._room import FORMAT, HEADER, Place, make_room, place_of
from fastprune.data._telling import Teller
from fastprune.data._workers import Made, Workers
from fastprune.errors import DataError
from fastprune.files import TEMPORARY, locked, write_atomically

__all__ = ["Cache", "Damaged", "Decoded", "open_cache"]

_MAGIC = "fastprune decoded images"
_BLOCK = 64
"""Images of a block: 10 MB at 224 pixels, checked in 2 ms."""


class Damaged(Exception):
    """A cache is not what was written; made again, it will be."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Images of a feed, row r image ``feed.indices[r]``.

    Attributes:
        pixels: ``[bytes]`` uint8.
        starts: ``[N]`` int64, where in it each image begins.
        sizes: ``[N, 2]`` int32, their heights and widths.
    """

    pixels: torch.Tensor
    starts: torch.Tensor
    sizes: torch.Tensor

    def to(self, device: torch.device) -> Decoded:
        """The same on a device."""
        return Decoded(*(t.to(device) for t in (self.pixels, self.starts, self.sizes)))


class Cache:
    """An opened cache.

    Attributes:
        decoded: the images, mapped from disk.
        own_sizes: ``[N, 2]`` int32, heights and widths that their files have.
        bad: rows whose file could not be read: black, or of whole images empty.
        path: the file.
    """

    def __init__(self, place: Place, feed: Feed) -> None:
        self.path = place.path
        try:
            header, sizes, tail = _described(place, feed)
            # Copy-on-write: torch warns of arrays that cannot be written to. Nobody writes to it.
            mapped = np.memmap(place.path, np.uint8, "c", HEADER, (header["bytes"],))
        except (OSError, ValueError, KeyError, TypeError):
            raise Damaged(f"{place.path}: not a whole cache of decoded images") from None
        self._ends = np.concatenate([[0], np.cumsum(_lengths(sizes))])
        starts, kept = self._ends[:-1].copy(), sizes[:, :2].copy()
        self.decoded = Decoded(*map(torch.from_numpy, (mapped, starts, kept)))
        self.own_sizes = sizes[:, 2:]
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
            last = min((block + 1) * _BLOCK, len(self._ends) - 1)
            pixels = self.decoded.pixels[self._ends[block * _BLOCK] : self._ends[last]].numpy()
            if zlib.crc32(pixels.data) != self._sums[block]:
                raise Damaged(f"{self.path}: damaged in images {block * _BLOCK} and following")
            self._checked[block] = True


def _lengths(sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Bytes of each image."""
    height, width = sizes[:, :2].astype(np.int64).T
    return np.asarray(3 * height * width)


def open_cache(feed: Feed, teller: Teller, bad: BadImages) -> Cache:
    """The cache of a feed, made where it is missing or not whole.

    Args:
        feed: one that `unsupported` has nothing against.
        teller: told of a damaged cache, and of decoding as it goes on.
        bad: counts the files that decoding cannot read.

    Raises:
        DataError: more files are bad than may be, a file changed, or the cache cannot be written.
    """
    place = place_of(feed)
    try:
        return _opened(place, feed, teller, bad)
    except OSError as error:
        raise DataError(
            f"data.cache: {place.path.parent} cannot be used: {error.strerror}; give another "
            "folder, or false to keep no decoded images"
        ) from None


def _opened(place: Place, feed: Feed, teller: Teller, bad: BadImages) -> Cache:
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
        make_room(place, feed.cache_limit)
        return Cache(place, feed)


def _waiting(place: Place) -> str:
    return f"waiting for another process that decodes images into {place.path.parent}"


def _described(
    place: Place, feed: Feed
) -> tuple[dict[str, Any], npt.NDArray[np.int32], dict[str, Any]]:
    """Header, sizes and tail of a file, if they are whole and of this feed; else a ValueError."""
    images = len(feed.indices)
    with place.path.open("rb") as stream:
        header = json.loads(stream.read(HEADER))
        stream.seek(HEADER + header["bytes"])
        rest = stream.read()
    wanted = {"magic": _MAGIC, "version": FORMAT, "key": place.key, "images": images}
    found = {"bytes": header["bytes"], "tail": len(rest), "sum": zlib.crc32(rest)}
    if header != wanted | found:
        raise ValueError("not what was asked for")
    sizes = np.frombuffer(rest, np.int32, 4 * images).reshape(images, 4).copy()
    if _lengths(sizes).sum() != header["bytes"]:
        raise ValueError("not as many bytes as its images have")
    return header, sizes, json.loads(rest[sizes.nbytes :])


def _write(path: Path, place: Place, feed: Feed, teller: Teller, bad: BadImages) -> None:
    images, whole = len(feed.indices), feed.augment
    sizes = np.zeros((images, 4), np.int32)
    sums: list[int] = []
    holes: list[tuple[int, str, str]] = []
    chunks = [feed.indices[first : first + _BLOCK] for first in range(0, images, _BLOCK)]
    workers = Workers(feed, None if whole else _planes, len(chunks), whole=whole)
    title = f"decoding {'training' if whole else 'evaluation'} images"
    with path.open("wb") as stream, teller.start(title, images, "images") as task:
        stream.write(bytes(HEADER))
        for first, made in zip(range(0, images, _BLOCK), workers.batches(chunks, 0), strict=True):
            if made.unusable is not None:
                raise DataError(f"{made.unusable.path}: {made.unusable.reason}")
            bad.add(made.bad)
            asked = len(made.rows) + len(made.bad)
            missing = set(range(asked)) - set(made.rows.tolist())
            holes += [(first + r, *b) for r, b in zip(sorted(missing), made.bad, strict=True)]
            pixels = made.pixels.numpy() if whole else _with_holes(made)
            kept = sizes[first : first + asked]
            if not whole:
                kept[:, :2] = pixels.shape[2:]
            kept[made.rows.numpy()] = made.sizes.numpy()
            content = pixels.reshape(-1).data
            sums.append(zlib.crc32(content))
            stream.write(content)
            _hold_to_limit(stream.tell(), feed)
            task.advance(asked)
        total = stream.tell() - HEADER
        rest = sizes.tobytes() + json.dumps({"sums": sums, "bad": holes}).encode()
        stream.write(rest)
        header = {
            "magic": _MAGIC,
            "version": FORMAT,
            "key": place.key,
            "images": images,
            "bytes": total,
            "tail": len(rest),
            "sum": zlib.crc32(rest),
        }
        stream.seek(0)
        stream.write(json.dumps(header).encode().ljust(HEADER - 1) + b"\n")
    workers.close()


def _hold_to_limit(written: int, feed: Feed) -> None:
    """Headers of a sample said that there is room; hardly ever they say too little."""
    if feed.augment and written + feed.cache_taken > feed.cache_limit:
        raise DataError(
            f"data.cache_limit: got {feed.cache_limit / 1e9:g}, but the decoded training images "
            "take more, against what the headers of some of them said; give more, or take "
            "data.pipeline=torchvision"
        )


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


def _remove_leftovers(place: Place) -> None:
    """Removes what a killed process left half-written; the lock says that nobody is at it now."""
    for leftover in place.path.parent.glob(f"{TEMPORARY}*.images"):
        leftover.unlink(missing_ok=True)
