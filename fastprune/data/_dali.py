"""The input pipeline on NVIDIA DALI: image files, decoded by its threads or by a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from functools import partial

import torch

from fastprune.data._bad import BadImages
from fastprune.data._batches import WHOLE, Batches, ClassDraw, Part
from fastprune.data._dali_graph import DecodingFailed, Fed, Wanted, decoded
from fastprune.data._dataset import Files, ResizedCrop
from fastprune.data._decode import Bad, decode
from fastprune.data._draws import image_generator
from fastprune.data._encoded import Cut, centre_cut, random_cut
from fastprune.data._pipeline import Batch, Feed, InputPipeline, Kind, Placement
from fastprune.data._telling import SILENT, Teller
from fastprune.errors import DataError
from fastprune.ops import crop_flip_normalize
from fastprune.processor import cores

__all__ = ["open_pipeline"]

_AS_IT_IS = Placement()
_MISSING = (
    "DALI is not installed: pip install 'fastprune[dali]' (CUDA 13, or no GPU), "
    "'fastprune[dali-cuda120]' (CUDA 12) or 'fastprune[dali-cuda110]' (CUDA 11); or take "
    "data.pipeline=torchvision"
)
_MOST_THREADS = 8


def open_pipeline(feed: Feed, source: Files, teller: Teller = SILENT) -> InputPipeline:
    """The DALI pipeline of image files.

    Raises:
        DataError: DALI is missing or does not load.
    """
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        # Any other name is a module that DALI itself misses.
        if error.name in ("nvidia", "nvidia.dali"):
            raise DataError(f"data.pipeline: {_MISSING}") from error
        raise DataError(f"data.pipeline: DALI does not load: {error}") from error
    return _DaliPipeline(feed, source, teller)


class _DaliPipeline(Batches):
    """Image files through DALI. Threads and memory belong to an epoch and end with it."""

    kind: Kind = "dali"

    def __init__(self, feed: Feed, source: Files, teller: Teller) -> None:
        super().__init__(feed)
        transform = feed.transform
        if not isinstance(transform, ResizedCrop):
            raise ValueError(f"expected ResizedCrop for image files, got {transform}")
        if transform.resize < transform.size:
            raise ValueError(
                f"expected a resize of at least the size, {transform.size}, got {transform.resize}"
            )
        self._source = source
        self._transform = transform
        # Files that DALI failed on: reasons by path.
        self._undecodable: dict[str, str] = {}
        self._bad = BadImages(feed.max_bad_images, teller)
        self._running: weakref.ref[Generator[Batch]] | None = None

    @property
    def bad_images(self) -> tuple[str, ...]:
        return self._bad.names

    def epoch(
        self,
        epoch: int,
        start: int = 0,
        *,
        placement: Placement = _AS_IT_IS,
        spread: bool = False,
        draw: ClassDraw | None = None,
        part: Part = WHOLE,
    ) -> Iterator[Batch]:
        self.close()
        running = self._epoch(epoch, start, placement, spread, draw, part)
        # Weak, so that an epoch which is abandoned ends when its iterator is dropped.
        self._running = weakref.ref(running)
        return running

    def close(self) -> None:
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._running = None

    def _epoch(
        self,
        epoch: int,
        start: int,
        placement: Placement,
        spread: bool,
        draw: ClassDraw | None,
        part: Part,
    ) -> Generator[Batch]:
        mine = part.of(self.images, self.batch_size)
        while start < mine.batches:
            made = decoded(
                self._wanted(epoch, start, spread, draw, part),
                size=self._transform.size,
                most=min(mine.batch_size, mine.images),
                device=placement.device,
                threads=_threads(self._feed.workers),
                known_bad=self._undecodable,
            )
            try:
                for pixels, fed in made:
                    some = self._leave_out(fed)
                    start += 1
                    if some:
                        yield self._placed(pixels, fed, placement)
            except DecodingFailed as error:
                # A new graph goes on from this batch, without the files that cannot be read.
                self._find_undecodable(error)

    def _wanted(
        self, epoch: int, start: int, spread: bool, draw: ClassDraw | None, part: Part
    ) -> Iterator[list[Wanted]]:
        paths, labels, stamps = self._source.paths, self._source.labels, self._source.stamps
        for chunk in self.chunks(epoch, start, spread=spread, draw=draw, part=part):
            yield [
                Wanted(
                    paths[i],
                    (int(stamps[i, 0]), int(stamps[i, 1])),
                    int(labels[i]),
                    partial(self._cut, epoch, int(i)),
                )
                for i in chunk
            ]

    def _cut(self, epoch: int, index: int, height: int, width: int) -> Cut:
        if not self._feed.augment:
            return centre_cut(height, width, self._transform)
        generator = image_generator(self._feed.seed, epoch, index)
        return random_cut(height, width, self._transform, generator)

    def _placed(self, pixels: torch.Tensor, fed: Fed, placement: Placement) -> Batch:
        """Flipped, normalised and laid out in one pass."""
        device = placement.device
        boxes = None
        if self._feed.augment:
            flips = [(0, 0, image.cut.flip) for image in fed.images]
            boxes = _sent(torch.tensor(flips, dtype=torch.int32), device)
        mean, std = (torch.tensor(values) * 255 for values in (self._feed.mean, self._feed.std))
        x = crop_flip_normalize(
            pixels,
            torch.arange(len(pixels), device=device),
            boxes,
            mean=_sent(mean, device),
            std=_sent(std, device),
            dtype=placement.dtype,
            channels_last=placement.channels_last,
        )
        return x, _sent(torch.tensor(fed.labels, dtype=torch.int64), device)

    def _leave_out(self, fed: Fed) -> bool:
        """Counts a batch's bad files, and says whether anything is left of it.

        Raises:
            DataError: they are too many, or a file changed.
        """
        if fed.unusable is not None:
            raise DataError(f"{fed.unusable.path}: {fed.unusable.reason}")
        self._bad.add(fed.bad)
        return self._bad.leaves(len(fed.images), fed.bad, training=self._feed.shuffle)

    def _find_undecodable(self, error: DecodingFailed) -> None:
        """Notes which of the files that DALI failed on cannot be read at all.

        Raises:
            DataError: all of them can, by PIL.
        """
        contents = ((image.path, image.data.tobytes()) for image in error.images)
        found = [bad for path, data in contents if isinstance(bad := decode(path, data), Bad)]
        if not found:
            raise DataError(
                f"data.pipeline: DALI fails ({error}) on a batch that PIL reads, the one with "
                f"{error.images[0].path}; take data.pipeline=torchvision"
            ) from error
        self._undecodable |= {bad.path: bad.reason for bad in found}


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; a GPU is not waited for."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _threads(asked: int | None) -> int:
    """Threads that decode: as many as asked for, at least one; else one a core, within reason."""
    if asked is not None:
        return max(1, asked)
    return min(cores(), _MOST_THREADS)
