"""``fastprune export``: a saved network in a format of others, run before it is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from fastprune import artifact
from fastprune.errors import ArtifactError, ConfigError, nearest
from fastprune.files import TEMPORARY, sync
from fastprune.run.export._agreement import agreement, expected_of
from fastprune.run.export._images import CheckImages, check_images
from fastprune.run.export._subject import Subject, open_fused, open_subject
from fastprune.run.networks import set_threads
from fastprune.run.paths import EXPORTED, FUSION, RunPaths
from fastprune.training import choose_progress

__all__ = ["FORMATS", "export"]

FORMATS = ("safetensors", "torch-export", "onnx", "standalone")


class _Format(Protocol):
    """What a format's file has."""

    check_possible: Callable[[Subject], None]
    write: Callable[[Subject, Path], None]
    run: Callable[[Subject, Path, Tensor], Tensor]


def export(
    path: Path,
    format: str,
    *,
    out: Path | None = None,
    pixels: str = "normalized",
    data: str | None = None,
    root: str | None = None,
    data_options: Sequence[str] = (),
    threads: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Writes a saved network in another format, and what was found when it was run from there.

    The files are written and run in a folder of their own beside the others; they take their
    places once they gave what the pruned network gives.

    Args:
        path: a run directory, what `fastprune.save` was given, or the folder of fused networks,
            whose experts and head become networks of their own.
        format: one of `FORMATS`.
        out: folder for the files; by default ``exported/FORMAT`` in the run directory, or
            beside the saved network ``NAME-exported/FORMAT``.
        pixels: ``normalized``, ``unit`` or ``uint8``.
        data: dataset to check on; by default the run's.
        root: its folder.
        data_options: its other options, ``key=value``.
        threads: for computing on the CPU.
        quiet: show no progress.

    Raises:
        FastpruneError: an unknown format, a missing package, a network that cannot be exported
            so, or an export that does not give what the pruned network gives.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format: unknown format {format!r}{nearest(format, FORMATS)}")
    name = f"fastprune.run.export._{format.replace('-', '_')}"
    kind = cast(_Format, import_module(name))
    set_threads(threads)
    progress = choose_progress(quiet=quiet)
    if joined := sorted(RunPaths(path).fused.glob(f"*/{FUSION}")):
        raise ConfigError(
            f"{path}: made several networks; name one of its fused ones, such as "
            f"{joined[0].parent}"
        )
    fused = open_fused(path, pixels) if (path / FUSION).is_file() else None
    subjects = {"": open_subject(path, pixels)} if fused is None else fused
    for subject in subjects.values():
        kind.check_possible(subject)
    images = {
        part: check_images(subject, path, data, root, data_options, progress)
        for part, subject in subjects.items()
    }
    folder = out or _default(path) / format
    with _staged(folder) as staged:
        parts = []
        for part, subject in subjects.items():
            place = staged / part
            place.mkdir(exist_ok=True)
            parts.append(_written(subject, format, kind, place, images[part]))
        files = _moved(staged, folder)
    facts = {"format": format, "pixels": pixels, "files": files}
    return {"model": str(path), **facts, "parts": parts}


def _written(
    subject: Subject, format: str, kind: _Format, folder: Path, images: CheckImages
) -> dict[str, Any]:
    """Writes a network to a folder and runs it from there: what it is, and how near it came."""
    expected = expected_of(subject.network, images.normalized, subject.name)
    kind.write(subject, folder)
    got = kind.run(subject, folder, images.given)
    found = agreement(expected, got, f"{subject.name} as {format}")
    return {
        "model": subject.name,
        "input": subject.metadata()["input"],
        "output": subject.gives,
        "checked": {"on": images.source, "note": images.note, **asdict(found)},
    }


def _moved(staged: Path, folder: Path) -> list[dict[str, Any]]:
    """Puts the files of one folder into another; what names another file comes after it."""
    found = [file.relative_to(staged) for file in staged.rglob("*") if file.is_file()]
    for name in sorted(found, key=lambda name: (name.suffix == ".py", name)):
        sync(staged / name)
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(staged / name, folder / name)
        sync((folder / name).parent)
    return [
        {"file": str(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(found)
    ]


def _default(path: Path) -> Path:
    if path.is_dir():
        return path / EXPORTED
    stem, _ = artifact.describe(path)
    return stem.with_name(f"{stem.name}-{EXPORTED}")


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder for half-written files inside ``folder``; where it fails, nothing of it stays."""
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    staged = folder / f"{TEMPORARY}{os.getpid()}"
    try:
        staged.mkdir(parents=True)
        yield staged
        made = []
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        for above in made:
            if above.is_dir() and not any(above.iterdir()):
                above.rmdir()
