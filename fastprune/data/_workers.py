"""Worker processes that decode image files, batch by batch, and stay between epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fastprune.data._bad import BadImages
from fastprune.data._dataset import Files, ResizedCrop
from fastprune.data._decode import Bad, Unusable, read_image
from fastprune.data._draws import image_generator
from fastprune.data._frames import framed, shrunk
from fastprune.data._pipeline import Feed
from fastprune.errors import DataError
from fastprune.processor import cores

__all__ = ["Made", "Workers", "check_made", "without_source"]

_MOST_WORKERS = 8


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One image a worker is to make; size and time of its file as it was listed."""

    path: str
    label: int
    index: int
    epoch: int
    size: int
    time: int


class Made(NamedTuple):
    """A batch from a worker.

    Attributes:
        pixels: of the images that could be read, ``[n, size, size, 3]`` uint8; of whole images
            ``[bytes]``, each ``[height, width, 3]``; or what ``finish`` of `Workers` made of it.
        sizes: ``[n, 4]`` int32: heights and widths of these, then of the files' own pixels.
        labels: ``[n]`` int64.
        rows: ``[n]`` int64, their places in the batch that was asked for.
        bad: the others, left out.
        unusable: a file that ends the epoch.
    """

    pixels: torch.Tensor
    sizes: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    bad: tuple[Bad, ...]
    unusable: Unusable | None


def check_made(made: Made, bad: BadImages, *, training: bool) -> bool:
    """Counts what was left out, and says whether anything is left of the batch.

    Raises:
        DataError: more is bad than may be, a file changed, or too little is left to train on.
    """
    if made.unusable is not None:
        raise DataError(f"{made.unusable.path}: {made.unusable.reason}")
    bad.add(made.bad)
    return bad.leaves(len(made.labels), made.bad, training=training)


def without_source(feed: Feed) -> Feed:
    """A feed that holds no list of files, which each worker would copy."""
    empty = np.zeros(0, np.int64)
    return replace(feed, source=Files((), empty), indices=empty)


class _Decoder:
    """What runs in the workers."""

    def __init__(
        self,
        transform: ResizedCrop,
        feed: Feed,
        finish: Callable[[torch.Tensor], torch.Tensor] | None,
        whole: bool,
    ) -> None:
        self._transform, self._feed, self._finish = transform, without_source(feed), finish
        self._whole = whole

    def __getitems__(self, wanted: list[_Wanted]) -> Made:
        pixels = [np.zeros(0, np.uint8)]
        sizes: list[tuple[int, int, int, int]] = []
        bad: list[Bad] = []
        rows: list[int] = []
        unusable = None
        for row, item in enumerate(wanted):
            image = read_image(item.path, item.size, item.time)
            if isinstance(image, Unusable):
                unusable = image
                break
            if isinstance(image, Bad):
                bad.append(image)
                continue
            own = (image.height, image.width)
            image = self._framed(image, item)
            pixels.append(np.asarray(image).reshape(-1))
            sizes.append((image.height, image.width, *own))
            rows.append(row)
        made = torch.from_numpy(np.concatenate(pixels))
        if not self._whole:
            made = made.view(-1, self._transform.size, self._transform.size, 3)
        return Made(
            made if self._finish is None else self._finish(made),
            torch.tensor(sizes, dtype=torch.int32).view(-1, 4),
            torch.tensor([wanted[row].label for row in rows], dtype=torch.int64),
            torch.tensor(rows, dtype=torch.int64),
            tuple(bad),
            unusable,
        )

    def _framed(self, image: Image.Image, item: _Wanted) -> Image.Image:
        if self._whole:
            return shrunk(image, self._transform.resize)
        generator = None
        if self._feed.augment:
            generator = image_generator(self._feed.seed, item.epoch, item.index)
        return framed(image, self._transform, generator)


class _Requests:
    """The batch sampler of a loader that lives for many epochs: it lists what is asked for."""

    def __init__(self) -> None:
        self.batches: Iterator[list[_Wanted]] = iter(())

    def __iter__(self) -> Iterator[list[_Wanted]]:
        return self.batches


class Workers:
    """The processes of one pipeline, started when they are first needed.

    Args:
        feed: whose files, how framed, and how many processes.
        finish: what they still do to a batch's pixels.
        batches: there can be, so that no more processes are started.
        whole: images are not framed; their shorter side is brought down to ``transform.resize``.
    """

    def __init__(
        self,
        feed: Feed,
        finish: Callable[[torch.Tensor], torch.Tensor] | None,
        batches: int,
        *,
        whole: bool = False,
    ) -> None:
        if not isinstance(feed.transform, ResizedCrop) or not isinstance(feed.source, Files):
            raise ValueError(f"expected ResizedCrop of image files, got {feed.transform}")
        self._source, self._batches = feed.source, batches
        self._given = feed.workers
        self._decoder = _Decoder(feed.transform, feed, finish, whole)
        self._requests = _Requests()
        self._loader: DataLoader[Made] | None = None

    def batches(self, chunks: Iterable[npt.NDArray[np.int64]], epoch: int) -> Iterator[Made]:
        """A batch for each chunk of image indices."""
        self._requests.batches = self._wanted(chunks, epoch)
        if self._loader is None:
            self._loader = self._open()
        yield from self._loader

    def close(self) -> None:
        """Ends them; what `batches` gives next starts them again."""
        # Workers end when nothing refers to their loader any more.
        self._loader = None

    def _wanted(
        self, chunks: Iterable[npt.NDArray[np.int64]], epoch: int
    ) -> Iterator[list[_Wanted]]:
        paths, labels, stamps = self._source.paths, self._source.labels, self._source.stamps
        for chunk in chunks:
            listed = zip(
                chunk.tolist(), labels[chunk].tolist(), stamps[chunk].tolist(), strict=True
            )
            yield [_Wanted(paths[i], label, i, epoch, *stamp) for i, label, stamp in listed]

    def _open(self) -> DataLoader[Made]:
        workers = self._given
        if workers is None:
            workers = min(cores(), _MOST_WORKERS, self._batches)
        return DataLoader(
            self._decoder,  # type: ignore[arg-type]  # only __getitems__ is ever called
            batch_sampler=self._requests,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )


def _as_it_is(batch: Any) -> Any:
    return batch
