"""Times of layers on disk, a file each, so that a device is measured once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fastprune.files import cache_folder, digest_of, write_json
from fastprune.latency.calls import Call
from fastprune.latency.clock import Clock
from fastprune.latency.table import LayerKind, LayerTable, Points, points_of
from fastprune.training.progress import Progress

__all__ = ["tables_of", "times_of"]

_FORMAT = 1


def tables_of(
    calls: Iterable[Call], clock: Clock, progress: Progress
) -> dict[LayerKind, LayerTable]:
    """The table of every kind of call."""
    kinds: dict[LayerKind, Call] = {}
    for call in calls:
        kinds.setdefault(call.kind, call)
    wanted = [(call, points_of(kind)) for kind, call in kinds.items()]
    return {
        kind: LayerTable(kind, dict(zip(points, times, strict=True)))
        for kind, (_, points), times in zip(
            kinds, wanted, times_of(wanted, clock, progress), strict=True
        )
    }


def times_of(
    wanted: Sequence[tuple[Call, Points]], clock: Clock, progress: Progress
) -> list[list[float]]:
    """Milliseconds of each call at its points, from the cache or measured and kept there.

    The cache is ``latency`` in `fastprune.files.cache_folder`; what it holds is of one device,
    number of threads, version of torch, batch size and mode. What cannot be read is measured
    again, and where nothing can be written that is told.
    """
    folder = cache_folder()
    files = [_file(folder, call.kind, points, clock) for call, points in wanted]
    found = [_read(file, points) for file, (_, points) in zip(files, wanted, strict=True)]
    missing = [place for place, times in enumerate(found) if times is None]
    told: Callable[[str], object] = progress.note
    if missing:
        with progress.start("latency of layers", len(missing), "kinds") as task:
            for place in missing:
                call, points = wanted[place]
                found[place] = times = clock.layer(call, points)
                told = _write(files[place], _key(call.kind, points, clock), times, told)
                task.advance(1)
    return [times for times in found if times is not None]


def _key(kind: LayerKind, points: Points, clock: Clock) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "setting": clock.setting.to_json(),
        "kind": kind.to_json(),
        "points": [list(point) for point in points],
    }


def _file(folder: Path | None, kind: LayerKind, points: Points, clock: Clock) -> Path | None:
    name = f"{digest_of(_key(kind, points, clock))[:32]}.json"
    return None if folder is None else folder / "latency" / name


def _read(file: Path | None, points: Points) -> list[float] | None:
    """The times in a file; None where they are not there or not whole."""
    if file is None:
        return None
    try:
        times = [float(time) for time in json.loads(file.read_text(encoding="utf-8"))["times"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return times if len(times) == len(points) and all(time > 0 for time in times) else None


def _write(
    file: Path | None,
    key: dict[str, Any],
    times: Sequence[float],
    told: Callable[[str], object],
) -> Callable[[str], object]:
    """Keeps times; gives what to tell a next failure to, which is said once."""
    if file is None:
        return told
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**key, "times": list(times)})
    except OSError as error:
        told(f"latency: {file.parent}: {error.strerror}; what is measured is not kept there")
        return lambda message: None
    return told
