"""Images that an export is checked on: of the run's own test set, where it is at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprune import data
from fastprune.config import checked, overlaid, parse_overrides
from fastprune.data import DataOptions, Normalization
from fastprune.errors import ConfigError, DataError
from fastprune.run.directory import saved_config
from fastprune.run.export._subject import FromPixels, Subject
from fastprune.run.paths import is_run_directory
from fastprune.training import Progress

__all__ = ["CheckImages", "check_images"]

_MOST = 64
_LEAST = 8
_NUMBERS = 2**21
"""Of all images together, about: 64 of 32x32 pixels, 13 of 224x224."""

_HIGHEST = 255


@dataclass(frozen=True, slots=True)
class CheckImages:
    """The same images twice.

    Attributes:
        normalized: ``[N, C, H, W]`` as the pruned network gets them.
        given: as the exported one gets them.
        source: what they are, ``cifar10, test``.
        note: why they are random ones, or "".
    """

    normalized: Tensor
    given: Tensor
    source: str
    note: str = ""


def check_images(
    subject: Subject,
    path: Path,
    name: str | None,
    root: str | None,
    overrides: Sequence[str],
    progress: Progress,
) -> CheckImages:
    """Test images of the run's dataset, of all classes alike, or else random ones.

    Args:
        subject: whose images they are.
        path: as the user named it; a run directory's own dataset is the default.
        name: another dataset.
        root: its folder.
        overrides: options of the dataset, ``key=value``.
        progress: told what is loaded.

    Raises:
        ConfigError: the dataset's images are not of the network's size, or an option is wrong.
        DataError: a dataset was asked for and is not there.
    """
    folder = next((f for f in (path, subject.stem.parent) if is_run_directory(f)), None)
    if len(subject.input_shape) != 3:
        return _random(subject, "it reads no images")
    if name is None and folder is None:
        if root is not None or overrides:
            raise ConfigError("--data: expected the name of a dataset beside its options")
        return _random(subject, "no dataset is known; name one by --data")
    content: dict[str, Any] = {}
    if folder is not None:
        content = saved_config(folder).data.model_dump(mode="json")
        if name not in (None, content["name"]):
            content = {}
    content |= ({"name": name} if name else {}) | ({"root": root} if root else {})
    # Nobody asked for a download now.
    content |= {"eval_batch_size": _count(subject), "download": False}
    options = checked(DataOptions, overlaid(content, parse_overrides(overrides)), source="data")
    try:
        return _real(subject, options, progress)
    except DataError as error:
        if name is not None or root is not None:
            raise
        return _random(subject, f"the run's dataset is not at hand ({error})")


def _real(subject: Subject, options: DataOptions, progress: Progress) -> CheckImages:
    usual = subject.normalization or options.normalization
    normalized = _first(subject, options.model_copy(update={"normalization": usual}), progress)
    given = normalized.to(subject.dtype)
    if subject.pixels != "normalized":
        plain = Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        unit = _first(subject, options.model_copy(update={"normalization": plain}), progress)
        given = (unit * _HIGHEST).round().to(torch.uint8) if subject.pixels == "uint8" else unit
    return CheckImages(normalized.to(subject.dtype), given, f"{options.name}, test")


def _first(subject: Subject, options: DataOptions, progress: Progress) -> Tensor:
    pipeline, info = data.load_test(options, progress)
    try:
        if info.input_shape != subject.input_shape:
            raise ConfigError(
                f"--data {options.name}: has images of {list(info.input_shape)}, "
                f"{subject.name} reads {list(subject.input_shape)}"
            )
        batches = [images for images, _ in islice(pipeline.epoch(0, spread=True), 1)]
    finally:
        pipeline.close()
    return torch.cat(batches)


def _random(subject: Subject, why: str) -> CheckImages:
    generator = torch.Generator().manual_seed(0)
    shape = (_count(subject), *subject.input_shape)
    note = f"checked on random images: {why}"
    if subject.normalization is None or len(subject.input_shape) != 3:
        images = torch.randn(shape, generator=generator).to(subject.dtype)
        return CheckImages(images, images, "random", note)
    levels = torch.randint(_HIGHEST + 1, shape, generator=generator, dtype=torch.uint8)
    inside = FromPixels(torch.nn.Identity(), subject.normalization, "uint8", subject.dtype)
    normalized = inside(levels)
    given = {
        "normalized": normalized,
        "unit": levels.to(torch.float32) / _HIGHEST,
        "uint8": levels,
    }[subject.pixels]
    return CheckImages(normalized, given, "random", note)


def _count(subject: Subject) -> int:
    return min(max(_NUMBERS // math.prod(subject.input_shape), _LEAST), _MOST)
