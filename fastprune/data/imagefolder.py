"""Folders of image files, one a class, laid out as ImageNet is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastprune.data._dataset import Dataset, Files, ResizedCrop, registry
from fastprune.data._flat import how_to_sort
from fastprune.data._options import DataOptions
from fastprune.errors import DataError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_ARRANGE = "arrange the images as train/CLASS/*.jpg and val/CLASS/*.jpg"
_SIZE = 224


@registry.register("imagefolder")
def build(options: DataOptions) -> Dataset:
    """Image files under train/CLASS and val/CLASS (or test/CLASS), as ImageNet is laid out.

    Classes are numbered in the order of their names. val/ is the test set, and test/ only where
    there is no val/; validation images are held out of train/. Hidden files are passed over.
    """
    root = options.root.expanduser()
    if not root.is_dir():
        raise DataError(f"data.root: there is no folder {root}; {_ARRANGE} under it")
    train = root / "train"
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    parts = [part for part in (train, test) if part is not None and part.is_dir()]
    if not parts:
        raise DataError(f"data.root: {root} has neither train/ nor val/; {_ARRANGE} under it")
    classes = _classes(parts[0])
    for other in parts[1:]:
        _same(classes, _classes(other), parts[0], other)
    size = options.image_size or _SIZE

    def read(part: Path | None, name: str) -> Files:
        if part is None or not part.is_dir():
            raise DataError(f"data.root: {root} has no {name}; {_ARRANGE}")
        return _files(part, classes)

    return Dataset(
        classes=classes,
        input_shape=(3, size, size),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        transform=ResizedCrop(size=size, resize=round(size * 256 / 224)),
        train=lambda: read(train, "train/"),
        test=lambda: read(test, "val/ or test/"),
    )


def _classes(part: Path) -> tuple[str, ...]:
    entries = [entry for entry in os.scandir(part) if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if classes:
        return tuple(classes)
    images = {entry.name for entry in entries if entry.name.lower().endswith(_ENDINGS)}
    if not images:
        raise DataError(f"{part}: no class folders; {_ARRANGE}")
    hint = how_to_sort(part, images)
    hint = _ARRANGE if hint is None else f"{_ARRANGE}: {hint}"
    raise DataError(f"{part}: {len(images)} images but no class folders; {hint}")


def _same(classes: tuple[str, ...], others: tuple[str, ...], first: Path, second: Path) -> None:
    for has, lacks, names in (
        (first, second, set(classes) - set(others)),
        (second, first, set(others) - set(classes)),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DataError(
                f"{lacks}: no class folder {min(names)!r}{more}, which {has} has; both need the "
                "same class folders"
            )


def _files(part: Path, classes: tuple[str, ...]) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [
            os.path.join(folder, file)
            for folder, _, files in os.walk(part / name, followlinks=True)
            for file in files
            if file.lower().endswith(_ENDINGS) and not file.startswith(".")
        ]
        if not found:
            raise DataError(
                f"{part / name}: a class folder without images ({', '.join(_ENDINGS)}); "
                "put its images there or remove it"
            )
        paths += sorted(found)
        labels += [label] * len(found)
    return Files(tuple(paths), np.array(labels, np.int64))
