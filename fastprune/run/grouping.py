"""``fastprune group``: which classes go to which device, by a run's baseline."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from fastprune import artifact
from fastprune.config import RunConfig
from fastprune.data import TrainingImages, load_training
from fastprune.errors import ConfigError, nearest
from fastprune.files import sha256_of, write_atomically, write_json
from fastprune.methods._grouping import (
    SIMILARITIES,
    Grouping,
    Similarity,
    group_classes,
    similarity,
)
from fastprune.run.directory import RunDirectory, saved_config
from fastprune.run.grouping_plots import plot_dendrogram, plot_similarity
from fastprune.run.networks import build_network, choose_normalization, device_of, set_threads
from fastprune.run.paths import RunPaths, check_run_directory
from fastprune.run.stages import stored_record
from fastprune.run.tables import row_console
from fastprune.training import Progress, choose_progress, mean_logits

__all__ = [
    "GROUP_COLUMNS",
    "GroupedClasses",
    "GroupedRun",
    "group_by",
    "group_run",
    "print_groups",
    "write_grouping",
]

GROUP_COLUMNS = ("devices", "device", "classes", "names")
"""Of ``groups.csv``, in their order."""


@dataclass(frozen=True, slots=True)
class GroupedRun:
    """What was grouped.

    Attributes:
        run: the run directory.
        images: training images that the logits are the means over, of each class.
        grouping: the groups.
        files: that were written.
    """

    run: Path
    images: tuple[int, ...]
    grouping: Grouping
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``grouping.json`` and what it was made from."""
        return {
            "run": str(self.run),
            "images": list(self.images),
            **self.grouping.to_json(),
            "files": [str(file) for file in self.files],
        }


def group_run(
    path: Path, kind: str = "cosine", out: Path | None = None, *, quiet: bool = False
) -> GroupedRun:
    """Groups the classes of a run's dataset by the mean logits that its baseline gives them.

    The images are the training ones, all of them, in order and not altered: the test images are
    to judge what comes of the groups, the validation images choose between networks, and a run
    need not have any. The run's own files are only read.

    Args:
        path: the run directory; its baseline stage is done, and it may go on meanwhile.
        kind: the similarity, one of `SIMILARITIES`.
        out: the folder of the files, made if need be; by default the run directory.
        quiet: no progress.

    Raises:
        ConfigError: an unknown similarity; it is no run directory; its baseline is not done,
            damaged or was never trained; ``out`` cannot be written. Nothing is written then.
        FastpruneError: what the run itself would say of its device, data and network.
    """
    alike = next((known for known in SIMILARITIES if known == kind), None)
    if alike is None:
        raise ConfigError(f"--similarity: unknown kind {kind!r}{nearest(kind, SIMILARITIES)}")
    check_run_directory(path)
    folder = RunPaths(path if out is None else out)
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"--out {folder.path}: is a file; expected a folder")
    config = saved_config(path)
    own = getattr(config.method, "similarity", alike)
    if own != alike and folder.path.resolve() == path.resolve():
        raise ConfigError(
            f"--similarity: got {alike}, but the groups in {path} are its experts', by {own}; "
            "expected an --out of its own"
        )
    _check_baseline(RunPaths(path))
    progress = choose_progress(quiet=quiet)
    device = device_of(config.device)
    set_threads(config.threads)
    found = group_by(_baseline(path, config), RunDirectory(path), config, alike, device, progress)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        files = write_grouping(folder, found.grouping, found.similarity)
    except OSError as error:
        raise ConfigError(f"{folder.path}: cannot write there: {error.strerror}") from None
    return GroupedRun(path, found.images, found.grouping, files)


@dataclass(frozen=True, slots=True)
class GroupedClasses:
    """Groups and what they follow from.

    Attributes:
        grouping: the groups.
        similarity: ``[K, K]``, of any two classes.
        images: training images of each class.
    """

    grouping: Grouping
    similarity: npt.NDArray[np.float64]
    images: tuple[int, ...]


def group_by(
    model: Callable[[int], nn.Module],
    directory: RunDirectory,
    config: RunConfig,
    kind: Similarity,
    device: torch.device,
    progress: Progress,
) -> GroupedClasses:
    """Groups classes by the mean logits that a network gives their training images.

    Args:
        model: the network, for so many classes.
        directory: of the run, whose image files are held to those it began with.
        config: the run's.
        kind: the similarity.
        device: where to compute.
        progress: shows how far it is.

    Raises:
        FastpruneError: there is one class, or a class has no images.
    """
    images = _open_images(directory, config, progress)
    try:
        info = images.info
        if info.num_classes < 2:
            raise ConfigError(
                f"{directory.path}: its dataset has one class; there is nothing to group"
            )
        means = mean_logits(
            model(config.model.num_classes or info.num_classes).to(device),
            images.pipeline,
            info.classes,
            device=device,
            channels_last=True,
            progress=progress,
            name="training images",
        )
    finally:
        images.pipeline.close()
    matrix = similarity(means.values, kind)
    grouping = group_classes(matrix, info.classes, kind)
    return GroupedClasses(grouping, matrix, tuple(means.images.tolist()))


def write_grouping(
    folder: RunPaths, grouping: Grouping, matrix: npt.NDArray[np.float64]
) -> tuple[Path, ...]:
    """Writes a grouping and its pictures, each file as a whole, ``grouping.json`` last.

    Args:
        folder: where to; it is there.
        grouping: the groups.
        matrix: ``[K, K]``, the similarity they are made from.

    Returns:
        The files.

    Raises:
        OSError: one cannot be written.
    """
    saved = BytesIO()
    np.save(saved, matrix)
    write_atomically(folder.groups, _csv(grouping))
    write_atomically(folder.similarity, saved.getvalue())
    plot_similarity(folder.similarity_plot, matrix, grouping)
    plot_dendrogram(folder.dendrogram, grouping)
    write_json(folder.grouping, grouping.to_json())
    pictures = (folder.similarity_plot, folder.dendrogram)
    return (folder.groups, folder.similarity, *pictures, folder.grouping)


def print_groups(found: GroupedRun) -> None:
    """What `fastprune group` found, a row for each number of devices."""
    grouping = found.grouping
    table = Table("devices", "classes of each", box=SIMPLE_HEAD)
    for devices in grouping.devices:
        table.add_row(str(devices), " | ".join(map(_numbers, grouping.groups(devices))))
    row_console().print(table)
    names = [f"{number} {name}" for number, name in enumerate(grouping.classes)]
    if any(name != str(number) for number, name in enumerate(grouping.classes)):
        print(f"classes: {', '.join(names)}")
    print(f"saved: {', '.join(str(file) for file in found.files)}")


def _check_baseline(run: RunPaths) -> None:
    """Raises ConfigError if there is no trained baseline."""
    record = stored_record(run.record_file("baseline"))
    if record is None:
        command = ["fastprune", "run", f"{run.path}/config.yaml", "--out", str(run.path)]
        raise ConfigError(
            f"{run.path}: its baseline is not done; it goes on by: "
            f"{shlex.join([*command, '--until', 'baseline'])}"
        )
    if not record.results.get("trained"):
        raise ConfigError(
            f"{run.path}: its baseline was never trained, so its logits say nothing of the "
            "classes; expected a run with model.weights or a baseline recipe"
        )
    file = run.baseline
    if not file.is_file() or sha256_of(file) != record.files.get(file.name):
        raise ConfigError(f"{file}: missing or damaged; the run's command makes it again")


def _open_images(directory: RunDirectory, config: RunConfig, progress: Progress) -> TrainingImages:
    data, chosen = config.data, choose_normalization(config.model, config.data).normalization
    if chosen is not None:
        data = data.model_copy(update={"normalization": chosen})
    images = load_training(data, config.seed, progress)
    try:
        directory.hold_images(images.listings, progress.note)
    except BaseException:
        images.pipeline.close()
        raise
    return images


def _baseline(path: Path, config: RunConfig) -> Callable[[int], nn.Module]:
    def build(classes: int) -> nn.Module:
        model, _ = build_network(config.model, classes, seed=config.seed)
        return artifact.restore(model, artifact.load_state(RunPaths(path).baseline))

    return build


def _csv(grouping: Grouping) -> bytes:
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(GROUP_COLUMNS)
    for devices in grouping.devices:
        for device, group in enumerate(grouping.groups(devices)):
            names = "; ".join(grouping.classes[k] for k in group)
            table.writerow([devices, device, _numbers(group), names])
    return text.getvalue().encode(errors="backslashreplace")


def _numbers(group: tuple[int, ...]) -> str:
    return " ".join(map(str, group))
