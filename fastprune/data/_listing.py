"""What a folder of image files held, to tell later whether it still holds the same."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastprune.data._dataset import Files

__all__ = ["Listing", "folder_of", "listing_of"]


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder's files in short. It does not matter where the folder lies.

    Attributes:
        files: how many.
        content: digest of their names, sizes and labels.
        times: digest of their times of modification; a copy of a folder may have others.
    """

    files: int
    content: str
    times: str


def listing_of(source: Files, chosen: npt.NDArray[np.int64] | None = None) -> Listing:
    """All files of a source, or some of them by number."""
    start = len(folder_of(source))
    indices = np.arange(len(source.paths)) if chosen is None else chosen
    names = "\0".join(source.paths[i][start:] for i in indices.tolist())
    content = hashlib.sha256(os.fsencode(names))
    content.update(np.ascontiguousarray(source.stamps[indices, 0]).tobytes())
    content.update(np.ascontiguousarray(source.labels[indices]).tobytes())
    times = hashlib.sha256(np.ascontiguousarray(source.stamps[indices, 1]).tobytes())
    return Listing(len(indices), content.hexdigest(), times.hexdigest())


def folder_of(source: Files) -> str:
    """The folder that all files of a source are in, however deep."""
    if not source.paths:
        return ""
    # What the least and the greatest name share, all between them share.
    ends = min(source.paths), max(source.paths)
    return os.path.commonpath([os.path.dirname(path) for path in ends])
