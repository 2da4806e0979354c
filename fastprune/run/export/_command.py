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

from fastprune.errors import ArtifactError, ConfigError, nearest
from fastprune.files import TEMPORARY, sync
from fastprune.run.export._agreement import agreement, expected_of
from fastprune.run.export._images import check_images
from fastprune.run.export._subject import Subject, open_subject
from fastprune.run.networks import set_threads
from fastprune.run.paths import EXPORTED
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
        path: a run directory, or what `fastprune.save` was given.
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
    subject = open_subject(path, pixels)
    kind.check_possible(subject)
    images = check_images(subject, path, data, root, data_options, choose_progress(quiet=quiet))
    expected = expected_of(subject.network, images.normalized, subject.name)
    folder = out or _default(path, subject.stem) / format
    with _staged(folder) as staged:
        kind.write(subject, staged)
        got = kind.run(subject, staged, images.given)
        found = agreement(expected, got, f"{subject.name} as {format}")
        # What names another file comes after it: model.py after its weights.
        files = sorted(staged.iterdir(), key=lambda file: (file.suffix == ".py", file.name))
        for file in files:
            sync(file)
            os.replace(file, folder / file.name)
        sync(folder)
    return {
        "model": subject.name,
        "format": format,
        "files": [
            {"file": str(folder / file.name), "bytes": (folder / file.name).stat().st_size}
            for file in files
        ],
        "input": subject.metadata()["input"],
        "checked": {"on": images.source, "note": images.note, **asdict(found)},
    }


def _default(path: Path, stem: Path) -> Path:
    return path / EXPORTED if path.is_dir() else stem.with_name(f"{stem.name}-{EXPORTED}")


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
