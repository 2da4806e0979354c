"""Where decoded images of a feed are kept, how much room they take, and whether there is any."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastprune.data._dataset import Files, ResizedCrop
from fastprune.data._decode import DECODER, image_size
from fastprune.data._listing import folder_of, listing_of
from fastprune.data._pipeline import Feed
from fastprune.files import digest_of

__all__ = [
    "FORMAT",
    "HEADER",
    "Needed",
    "Place",
    "lossy",
    "make_room",
    "needed",
    "place_of",
    "unsupported",
]

FORMAT = 2
HEADER = 4096
_PER_IMAGE = 32
"""Bytes beside an image's pixels, at most: its sizes, and its part of a checksum."""

_SAMPLE = 64
"""Files whose headers are read: all of ImageNet's would take an hour from a slow disk."""

_NAME = re.compile(r"([0-9a-f]{12})-([0-9a-f]{12})-[0-9a-f]{16}\.images")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the cache of a feed lies, and what it must say of itself.

    Attributes:
        path: its name has the folder of the images, the state of that folder, and the key.
        key: digest of all that the pixels follow from.
    """

    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class Needed:
    """The room that decoded images take.

    Attributes:
        bytes: of the file; where not every header was read, what only one sample in a thousand
            would fall short of.
        sampled: image files whose headers say so; 0 where their sizes do not matter.
        shrunk: of these, images whose shorter side is brought down.
    """

    bytes: int
    sampled: int = 0
    shrunk: int = 0

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:.3g} GB"
        return f"{size}, by the headers of {self.sampled} of them" if self.sampled else size


def needed(feed: Feed) -> Needed:
    """The room that the decoded images of a feed take."""
    images, transform = len(feed.indices), _transform(feed)
    if not feed.augment:
        return Needed(HEADER + images * (3 * transform.size**2 + _PER_IMAGE))
    found = [size for size in map(image_size, _sampled(feed)) if size is not None]
    if not found:
        return Needed(HEADER + images * (3 * transform.resize**2 + _PER_IMAGE))
    shorter = np.array([min(size) for size in found])
    scales = np.minimum(1, transform.resize / shorter)
    # Sides are rounded: to one pixel more at most.
    each = [
        3.0 * math.ceil(h * s) * math.ceil(w * s) for (h, w), s in zip(found, scales, strict=True)
    ]
    margin = 0.0 if len(found) == images else 3 * float(np.std(each)) / math.sqrt(len(found))
    total = HEADER + images * (float(np.mean(each)) + margin + _PER_IMAGE)
    return Needed(math.ceil(total), len(found), int((shorter > transform.resize).sum()))


def lossy(feed: Feed) -> str | None:
    """Why decoded images of a feed are not what decoding them every time gives, or None."""
    if not feed.augment:
        return None
    found, side = needed(feed), _transform(feed).resize
    if not found.shrunk:
        return None
    return (
        f"{found.shrunk} of the {found.sampled} that were looked at would be brought to a shorter "
        f"side of {side}, and small parts of them blurred (data.pipeline=device does so)"
    )


def unsupported(feed: Feed) -> str | None:
    """Why the images of a feed are not kept decoded, or None."""
    if not isinstance(feed.source, Files) or not isinstance(feed.transform, ResizedCrop):
        return "its images are in memory"
    if feed.cache is None:
        return "data.cache is false, or null where there is no home folder"
    wanted = needed(feed)
    if wanted.bytes + feed.cache_taken > feed.cache_limit:
        return (
            f"its decoded images would take {wanted}{_beside(feed.cache_taken)}, and "
            f"data.cache_limit={feed.cache_limit / 1e9:g}"
        )
    # Not Path.exists, which raises where a folder may not be looked into.
    folder = next(f for f in (feed.cache, *feed.cache.absolute().parents) if os.path.exists(f))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"data.cache={feed.cache} cannot be written to"
    free = shutil.disk_usage(folder).free
    if wanted.bytes + feed.cache_unwritten > free and not place_of(feed).path.exists():
        return (
            f"its decoded images would take {wanted}{_beside(feed.cache_unwritten)}, and "
            f"{free / 1e9:.3g} GB are free at data.cache={feed.cache}"
        )
    return None


def _beside(taken: int) -> str:
    return f" beside {taken / 1e9:.3g} GB of this run's other sets" if taken else ""


def place_of(feed: Feed) -> Place:
    """Where the decoded images of a feed lie.

    Raises:
        ValueError: they are not image files, or there is no folder.
    """
    source, transform = feed.source, _transform(feed)
    if not isinstance(source, Files) or feed.cache is None:
        raise ValueError("expected image files and a folder")
    whole, chosen = listing_of(source), listing_of(source, feed.indices)
    folder = hashlib.sha256(os.fsencode(os.path.abspath(folder_of(source)))).hexdigest()
    state = digest_of([FORMAT, DECODER, whole.content, whole.times])
    # Whole images serve parts of any size.
    form: list[Any] = ["whole"] if feed.augment else ["centre", transform.size]
    key = digest_of([FORMAT, DECODER, chosen.content, chosen.times, *form, transform.resize])
    return Place(feed.cache / f"{folder[:12]}-{state[:12]}-{key[:16]}.images", key)


def make_room(place: Place, limit: int) -> None:
    """Removes caches of the same folder as it was before, then what was not used for longest.

    The sets of a run together take no more than the limit (`Feed.cache_taken`) and were used last,
    so none of them goes. A process that still reads one keeps it until it closes it.
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


def _transform(feed: Feed) -> ResizedCrop:
    if not isinstance(feed.transform, ResizedCrop):
        raise ValueError(f"expected ResizedCrop, got {feed.transform}")
    return feed.transform


def _sampled(feed: Feed) -> Iterator[str]:
    """Files from all over the set: those of a folder, and so a class, are neighbours."""
    if not isinstance(feed.source, Files):
        raise ValueError("expected image files")
    count = min(len(feed.indices), _SAMPLE)
    places = np.arange(count) * len(feed.indices) // max(count, 1)
    for index in feed.indices[places].tolist():
        yield feed.source.paths[index]


def _caches(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if _NAME.fullmatch(file.name))
