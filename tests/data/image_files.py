"""Small image files, feeds of them, and a teller that remembers; for the tests beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fastprune.data import Feed, Files, InputPipeline, ResizedCrop


class Told:
    """A teller that keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.titles: list[str] = []
        self.done = 0

    @contextmanager
    def start(self, title: str, total: int, unit: str = "") -> Iterator[Told]:
        self.titles.append(f"{title}: {total} {unit}")
        yield self

    def advance(self, n: int = 1) -> None:
        self.done += n

    def note(self, message: str) -> None:
        self.notes.append(message)


def photographs(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Files:
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(1)
    for i in range(count):
        small = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((40 + 7 * (i % 4), 36 + 5 * (i % 3))).save(folder / f"{i:02}.jpg")
        if i in broken:
            content = (folder / f"{i:02}.jpg").read_bytes()
            (folder / f"{i:02}.jpg").write_bytes(content[: len(content) * 3 // 4])
    return listed(folder)


def listed(folder: Path) -> Files:
    paths = sorted(str(path) for path in folder.iterdir())
    return Files(tuple(paths), np.arange(len(paths)))


def feed_of(source: Files, **changed: object) -> Feed:
    fields: dict[str, object] = {
        "source": source,
        "indices": np.arange(len(source.paths)),
        "transform": ResizedCrop(24, 28),
        "augment": True,
        "shuffle": True,
        "batch_size": 4,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "seed": 3,
        "workers": 0,
    }
    return Feed(**{**fields, **changed})  # type: ignore[arg-type]


def labels_of(pipeline: InputPipeline, epoch: int, start: int = 0) -> list[list[int]]:
    return [y.tolist() for _, y in pipeline.epoch(epoch, start)]
