"""The run directory: opening and locking it, and what in it is still good."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from fastprune.config import RunConfig, make_config, to_yaml
from fastprune.data import Listing
from fastprune.distributed import first, launched
from fastprune.errors import ConfigError, DataError, FastpruneError, StorageError
from fastprune.files import TEMPORARY, read_json, sha256_of, write_atomically, write_json
from fastprune.run.lock import check_shared, locked
from fastprune.run.paths import (
    BASELINE,
    CONFIG,
    ENVIRONMENT,
    FILES,
    FOLDERS,
    GRAPH,
    IMAGES,
    LOCK,
    RECORDS,
    WORK,
    RunPaths,
    is_run_directory,
)
from fastprune.run.stages import StageRecord, stored_record, write_record

__all__ = ["RunDirectory", "open_directory", "saved_config"]

_INPUTS = "inputs.json"


class RunDirectory(RunPaths):
    """An opened and locked run directory; get one from `open_directory`."""

    def take(self, file: Path) -> None:
        """Puts a copy of a method's file, or of a folder of files, beside the results, under its
        name.

        Raises:
            ValueError: results do not have that name.
        """
        known = FOLDERS if file.is_dir() else FILES
        if file.name not in known:
            raise ValueError(f"{file.name}: not a name of a result; expected one of {known}")
        if not file.is_dir():
            write_atomically(self.path / file.name, lambda path: shutil.copyfile(file, path))
            return
        shutil.rmtree(self.path / file.name, ignore_errors=True)
        shutil.copytree(file, self.path / file.name)

    def replan(self, config: RunConfig) -> None:
        """Removes what the plan's stage left, so that it begins anew, by another configuration.

        Of an ensemble stays what follows from the new configuration too, and of a run that turns
        into one, or was one, the baseline alone.
        """
        if saved_config(self.path).method.ensemble != config.method.ensemble:
            _clear(self.path, {*_BEFORE_METHOD, f"{RECORDS}/baseline.json", f"{WORK}/baseline"})
        # Without its record an ensemble's last report is not taken for that of the new one.
        for stage in ("plan", "report"):
            self.record_file(stage).unlink(missing_ok=True)
        self.page.unlink(missing_ok=True)
        shutil.rmtree(self.work_folder("plan"), ignore_errors=True)
        _write_config(self.path, config)

    def hold_images(self, listings: Mapping[str, Listing], note: Callable[[str], object]) -> None:
        """Writes down which image files the run began with, or compares them with those there.

        Raises:
            DataError: there are others, or of other sizes, in a folder.
        """
        if not listings:
            return
        there = read_json(self.path / IMAGES)
        if not isinstance(there, dict):
            write_json(self.path / IMAGES, {part: asdict(of) for part, of in listings.items()})
            return
        for part, now in listings.items():
            before = there.get(part, asdict(now))
            if before["content"] != now.content:
                raise DataError(
                    f"data.root: the {part} images changed since the run began: "
                    f"{before['files']:,} files then, {now.files:,} now, or others by name or "
                    "size; put them back, or use --fresh to start the run anew"
                )
            if before["times"] != now.times:
                note(
                    f"the {part} images have other times of modification than when the run began; "
                    "their names and sizes are the same"
                )

    def work(self, stage: str, inputs: str) -> Path:
        """A folder for the checkpoints of a stage; emptied when it is from other inputs."""
        if not (self.path / LOCK).exists():
            raise _gone(self.path)
        folder = self.work_folder(stage)
        mark = folder / _INPUTS
        before = read_json(mark)
        if not isinstance(before, dict) or before.get("inputs") != inputs:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            before = {"inputs": inputs}
        write_json(mark, {**before, "starts": before.get("starts", 0) + 1})
        return folder

    def leave(self, stage: str, seconds: float) -> None:
        """Writes down that a process ended before the stage did, and how long it worked on it."""
        mark = self.work_folder(stage) / _INPUTS
        before = read_json(mark)
        if isinstance(before, dict):
            spent = before.get("seconds", 0.0) + seconds
            write_json(mark, {**before, "ends": before.get("ends", 0) + 1, "seconds": spent})

    def finished(self, stage: str, inputs: str) -> tuple[StageRecord | None, str | None]:
        """The record of a stage if its result still stands, or why an old one does not."""
        file = self.record_file(stage)
        record = stored_record(file)
        if record is None:
            return None, "its record is unreadable" if file.exists() else None
        if record.inputs != inputs:
            return None, "its inputs have changed"
        for name, expected in record.files.items():
            file = self.path / name
            if not file.is_file():
                return None, f"{name} is missing"
            if sha256_of(file) != expected:
                return None, f"{name} is damaged"
        return record, None

    def finish(
        self,
        stage: str,
        inputs: str,
        results: Mapping[str, Any],
        files: tuple[Path, ...],
        seconds: float,
        bad_images: tuple[str, ...] = (),
    ) -> StageRecord:
        """Writes down that a stage is done; its files must be in place."""
        if not (self.path / LOCK).exists():
            raise _gone(self.path)
        sums = {str(file.relative_to(self.path)): sha256_of(file) for file in files}
        # Through JSON and back, so that a stage sees the same whether it goes on or starts again.
        plain = json.loads(json.dumps(results))
        before = read_json(self.work_folder(stage) / _INPUTS) or {}
        kills = before.get("starts", 1) - before.get("ends", 0) - 1
        self.leave(stage, seconds)
        seconds = round(before.get("seconds", 0.0) + seconds, 3)
        record = StageRecord(stage, inputs, plain, sums, seconds, kills, bad_images)
        (self.path / RECORDS).mkdir(exist_ok=True)
        write_record(self.record_file(stage), record)
        return record


def saved_config(path: Path) -> RunConfig:
    """The configuration of a run directory.

    Raises:
        ConfigError: it cannot be read.
    """
    file = path / CONFIG
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        given = None
    if not isinstance(given, dict):
        raise ConfigError(
            f"{file}: unreadable; use --fresh to start the run anew, or another --out"
        )
    return make_config(given, source=str(file))


@contextmanager
def open_directory(
    path: Path,
    config: RunConfig,
    *,
    fresh: bool = False,
    replan: bool = False,
    moved: bool = False,
) -> Iterator[RunDirectory]:
    """The run directory at ``path``, made if need be and locked while open.

    Where what is done with it is refused by a FastpruneError before it left a result, nothing of
    it stays.

    Of several ranks the first opens and locks it, for all.

    Args:
        path: the folder.
        config: what is to be run; the folder must be new, empty or of the same configuration but
            for how images are read, unless the run there ended before it made anything.
        fresh: remove what an earlier run left (only files that fastprune writes) and start anew.
        replan: another method, budget and fine-tuning than the run's there are welcome; they take
            its place by `RunDirectory.replan`.
        moved: the weights the network begins with may lie at another path than before; stages
            follow from their content.

    Raises:
        ConfigError: the folder holds something else, a run of another configuration, or a run
            in progress.
    """
    with ExitStack() as held:

        def opened() -> None:
            held.enter_context(_opened(path, config, fresh=fresh, replan=replan, moved=moved))

        first(opened)
        check_shared(path)
        yield RunDirectory(path)


@contextmanager
def _opened(
    path: Path, config: RunConfig, *, fresh: bool, replan: bool, moved: bool
) -> Iterator[None]:
    """As `open_directory`, in the process that uses it."""
    _refuse_foreign(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot make the run directory: {error.strerror}") from None
    try:
        with locked(path / LOCK), _storage(path):
            _prepare(path, config, fresh=fresh, replan=replan, moved=moved)
            yield
    except FastpruneError:
        for folder in missing:
            try:
                folder.rmdir()
            except OSError:
                # It holds results, or somebody else put something there meanwhile.
                break
        raise


def _prepare(path: Path, config: RunConfig, *, fresh: bool, replan: bool, moved: bool) -> None:
    if fresh:
        _clear(path)
    for leftover in path.rglob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
    if is_run_directory(path) and not _holds_results(path):
        _clear(path)
    if is_run_directory(path):
        _refuse_other(path, config, _REPLANNED if replan else frozenset(), moved)
    else:
        write_json(path / ENVIRONMENT, environment())
    if not (replan and is_run_directory(path)):
        _write_config(path, config)


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    """A context whose errors of the disk are told as such; without a result nothing stays."""
    try:
        try:
            yield
        except OSError as error:
            if not (path / LOCK).exists():
                raise _gone(path) from error
            told = StorageError.of(error, path)
            if told is None:
                raise
            raise told from error
    except FastpruneError:
        if not _holds_results(path):
            _clear(path)
            (path / LOCK).unlink(missing_ok=True)
        raise


def _gone(path: Path) -> StorageError:
    return StorageError(f"{path}: the run directory was removed while the run was using it")


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever repeats the run."""
    packages = {}
    for name in ("fastprune", "torch", "torchvision", "numpy", "safetensors"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed as a package"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "ranks": launched(),
        "packages": packages,
        "command": [Path(sys.argv[0]).name.replace("__main__.py", "fastprune"), *sys.argv[1:]],
    }


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"{path}: is a file; --out expects a folder")
    if is_run_directory(path):
        return
    known = {*FILES, *FOLDERS}
    strange = [e.name for e in path.iterdir() if e.name not in known and TEMPORARY not in e.name]
    if strange:
        raise ConfigError(
            f"{path}: not a run directory and not empty (it holds {sorted(strange)[0]!r}); "
            "choose another --out"
        )


def _holds_results(path: Path) -> bool:
    """Whether a run left more than its configuration: a finished stage or part of one."""
    made = set(FILES) - {CONFIG, ENVIRONMENT, IMAGES, LOCK, GRAPH}
    files = [*(path / RECORDS).glob("*"), *(path / WORK).rglob("*")]
    return any((path / name).exists() for name in made) or any(
        file.is_file() and file.name != _INPUTS for file in files
    )


_REPLANNED = frozenset({"method", "prune", "finetune"})
"""Parts of a configuration that the baseline does not follow from."""

_BEFORE_METHOD = frozenset({CONFIG, ENVIRONMENT, IMAGES, GRAPH, BASELINE})
"""Files that the baseline's stage and those before it leave."""


def _refuse_other(path: Path, config: RunConfig, free: frozenset[str], moved: bool) -> None:
    there, wanted = saved_config(path).essence(), config.essence()
    if moved:
        there["model"]["weights"] = wanted["model"]["weights"]
    differing = list(
        _differences(
            {key: value for key, value in there.items() if key not in free},
            {key: value for key, value in wanted.items() if key not in free},
        )
    )
    if differing:
        shown = "; ".join(differing[:3]) + ("; …" if len(differing) > 3 else "")
        later = all(line.startswith(tuple(_REPLANNED)) for line in differing)
        keeping = "--fresh-search to keep its baseline alone, " if later else ""
        raise ConfigError(
            f"{path}: holds a run of another configuration ({shown}); "
            f"use {keeping}--fresh to replace it, or another --out"
        )


def _write_config(path: Path, config: RunConfig) -> None:
    content = to_yaml(config).encode()
    if not (path / CONFIG).exists() or (path / CONFIG).read_bytes() != content:
        write_atomically(path / CONFIG, content)


def _differences(there: Any, wanted: Any, where: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*there, *wanted]):
            inner = f"{where}.{key}" if where else str(key)
            yield from _differences(there.get(key), wanted.get(key), inner)
    elif there != wanted:
        yield f"{where}: {_short(there)} there, {_short(wanted)} now"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _clear(path: Path, but: Set[str] = frozenset()) -> None:
    """Removes all that fastprune writes there but some files and folders in folders."""
    for name in FOLDERS:
        inside = {kept.partition("/")[2] for kept in but if kept.startswith(f"{name}/")}
        for there in path.glob(f"{name}/*"):
            if there.name not in inside:
                shutil.rmtree(there) if there.is_dir() else there.unlink()
        if not inside:
            shutil.rmtree(path / name, ignore_errors=True)
    for name in FILES:
        # The lock is held: removing its file would let a second run lock a new one.
        if name != LOCK and name not in but:
            (path / name).unlink(missing_ok=True)
