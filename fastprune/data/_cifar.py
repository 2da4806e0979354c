"""The python version of CIFAR-10 and CIFAR-100, as torchvision lays it out on disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastprune.data._dataset import Dataset, Images, PadCrop, check_size
from fastprune.data._options import DataOptions
from fastprune.errors import DataError

__all__ = ["Layout", "cifar"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of the files and fields of one of the two datasets.

    Attributes:
        folder: the dataset's folder under root.
        train: files of the training images.
        test: file of the test images.
        names: file of the class names.
        label_key: field of the labels.
        name_key: field of the class names.
        fetch: downloads the dataset into a root.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_key: str
    name_key: str
    fetch: Callable[[Path], None]


def cifar(
    options: DataOptions,
    layout: Layout,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Dataset:
    """The dataset at ``options.root``, fetched first where asked for and missing.

    Raises:
        DataError: files are missing, or are not what they should be.
    """
    check_size(options, 32)
    folder = options.root.expanduser() / layout.folder
    if options.download and not all(
        (folder / name).is_file() for name in (*layout.train, layout.test, layout.names)
    ):
        _download(options, layout)
    names = _unpickled(folder / layout.names, options)
    classes = tuple(str(name) for name in names.get(layout.name_key, ()))
    if not classes:
        raise DataError(f"{folder / layout.names}: no list of class names {layout.name_key!r}")

    def read(files: Sequence[str]) -> Images:
        parts = [
            _batch(folder / file, _unpickled(folder / file, options), layout.label_key, classes)
            for file in files
        ]
        return Images(
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )

    return Dataset(
        classes=classes,
        input_shape=(3, 32, 32),
        mean=mean,
        std=std,
        transform=PadCrop(padding=4, flip=True),
        train=lambda: read(layout.train),
        test=lambda: read((layout.test,)),
    )


def _download(options: DataOptions, layout: Layout) -> None:
    try:
        layout.fetch(options.root.expanduser())
    # urllib raises OSError, torchvision RuntimeError for an archive that is not the official one.
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"data.download: fetching {options.name} into {options.root} failed: "
            f"{' '.join(str(error).split())}"
        ) from None


def _unpickled(file: Path, options: DataOptions) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(
            f"data.root: {options.name} is not at {options.root}: expected {file}; "
            "give the right root, or download=true to fetch it"
        )
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="latin1").load()
    # Every one of these has been seen from truncated or altered pickles.
    except (
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        MemoryError,
        OSError,
        OverflowError,
        TypeError,
        UnicodeDecodeError,
        ValueError,
    ) as error:
        raise DataError(
            f"{file}: not a whole CIFAR file: {' '.join(str(error).split())}; remove it and "
            "fetch it again"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a mapping, got a {type(content).__name__}")
    return content


def _batch(
    file: Path, content: dict[str, Any], label_key: str, classes: tuple[str, ...]
) -> Images:
    pixels, labels = content.get("data"), content.get(label_key)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != 3 * 32 * 32
        or not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not set(labels) <= set(range(len(classes)))
    ):
        raise DataError(
            f"{file}: expected 'data' [N, 3072] uint8 and {label_key!r}, N labels below "
            f"{len(classes)}"
        )
    return Images(pixels.reshape(-1, 3, 32, 32), np.array(labels, np.int64))


class _ArraysOnly(pickle.Unpickler):
    """Reads lists, strings and numpy arrays; a file that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            # Where this function lives has moved between versions of numpy; arrays know.
            return np.empty(0).__reduce__()[0]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
