"""DALI's own part: a graph that decodes batches of files, fed and emptied in order."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.nn.functional import interpolate

from fastprune.data._decode import Bad, Unusable
from fastprune.data._encoded import CutOf, Encoded, read
from fastprune.errors import DataError

__all__ = ["DecodingFailed", "Fed", "Wanted", "decoded"]

# Batches whose files are read before DALI asks for them, and batches that DALI works on.
_READ_AHEAD = 2
_DECODED_AHEAD = 2


Read = Encoded | Bad | Unusable


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image of a batch.

    Attributes:
        path: its file.
        stamp: bytes the file had when it was listed, and nanoseconds of its modification then.
        label: of the image.
        cut_of: what is to be made of it.
    """

    path: str
    stamp: tuple[int, int]
    label: int
    cut_of: CutOf


@dataclass(frozen=True, slots=True)
class Fed:
    """A batch that DALI was given.

    Attributes:
        images: what could be read.
        labels: of those.
        bad: what could not.
        unusable: the first file that changed or is gone.
    """

    images: list[Encoded]
    labels: list[int]
    bad: list[Bad]
    unusable: Unusable | None


class DecodingFailed(Exception):
    """DALI could not decode one of these images, and can do nothing more."""

    def __init__(self, reason: str, images: list[Encoded]) -> None:
        super().__init__(reason)
        self.images = images


def decoded(
    wanted: Iterator[list[Wanted]],
    *,
    size: int,
    most: int,
    device: torch.device,
    threads: int,
    known_bad: dict[str, str],
    whole: bool = False,
) -> Iterator[tuple[torch.Tensor, Fed]]:
    """Batches of images, decoded ahead.

    On a CPU DALI decodes the part that is used, and torch resizes it: that takes a seventh of the
    time of DALI's own resize. On a GPU both are DALI's. Nothing is flipped yet.

    Args:
        wanted: the batches.
        size: height and width of what comes out.
        most: images of the largest batch.
        device: where they come out.
        threads: that read and resize, and as many of DALI's that decode.
        known_bad: files that are not tried: reasons by path.
        whole: DALI resizes on a CPU too.

    Yields:
        pixels ``[n, 3, size, size]`` uint8, contiguous, in memory of their own, and what they are
        of. A batch of which no file could be read, or one is unusable, has n = 0 and is the last.

    Raises:
        DataError: DALI cannot use the device.
        DecodingFailed: DALI gave up.
    """
    whole = whole or device.type == "cuda"
    pool = ThreadPoolExecutor(threads, "fastprune-dali")
    try:
        source = _Source(wanted, pool, threads, known_bad, whole)
        pipe = _graph(source, size, most, device, threads, whole)
        # One for the epoch: torch keeps the memory of every stream apart.
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with _failures(source):
            pipe.schedule_run()
        while True:
            try:
                with _failures(source):
                    (outputs,) = pipe.share_outputs()
            except StopIteration:
                break
            if whole:
                pixels = _copied(outputs, size, device, stream)
            else:
                pixels = _resized(outputs, source.fed[0].images, size, pool, threads)
            # DALI has its memory back, and works on, before the batch is used.
            del outputs
            with _failures(source):
                pipe.release_outputs()
                pipe.schedule_run()
            yield pixels, source.fed.popleft()
        for fed in source.fed:
            yield torch.empty((0, 3, size, size), dtype=torch.uint8, device=device), fed
    finally:
        pool.shutdown(cancel_futures=True)


class _Source:
    """What DALI calls for batches; the files of the next ones are being read meanwhile.

    Attributes:
        fed: batches that DALI has, and that were not taken yet.
    """

    def __init__(
        self,
        wanted: Iterator[list[Wanted]],
        pool: ThreadPoolExecutor,
        threads: int,
        known_bad: dict[str, str],
        whole: bool,
    ) -> None:
        self.fed: deque[Fed] = deque()
        self._wanted = wanted
        self._pool = pool
        self._threads = threads
        self._known_bad = known_bad
        self._whole = whole
        self._reading: deque[tuple[list[Wanted], list[Future[list[Read]]]]]
        self._reading = deque()
        self._read_ahead()

    def __call__(self) -> tuple[Any, ...]:
        if not self._reading:
            raise StopIteration
        wanted, parts = self._reading.popleft()
        self._read_ahead()
        found = [one for part in parts for one in part.result()]
        fed = Fed(
            [one for one in found if isinstance(one, Encoded)],
            [w.label for one, w in zip(found, wanted, strict=True) if isinstance(one, Encoded)],
            [one for one in found if isinstance(one, Bad)],
            next((one for one in found if isinstance(one, Unusable)), None),
        )
        self.fed.append(fed)
        if not fed.images or fed.unusable is not None:
            self._reading.clear()
            raise StopIteration
        return self._columns(fed.images)

    def _columns(self, images: list[Encoded]) -> tuple[Any, ...]:
        cuts = [image.cut for image in images]
        boxes = np.array([cut.box for cut in cuts], np.int32)
        # DALI takes dense arrays only.
        corners, shapes = (np.ascontiguousarray(part) for part in (boxes[:, :2], boxes[:, 2:]))
        decode = ([image.data for image in images], corners, shapes)
        if not self._whole:
            return decode
        resized = np.array([cut.resized for cut in cuts], np.float32)
        return (*decode, resized, np.array([cut.corner for cut in cuts], np.int32))

    def _read_ahead(self) -> None:
        while len(self._reading) < _READ_AHEAD:
            batch = next(self._wanted, None)
            if batch is None:
                return
            step = -(-len(batch) // self._threads)
            parts = [batch[first : first + step] for first in range(0, len(batch), step)]
            self._reading.append((batch, [self._pool.submit(self._read, p) for p in parts]))

    def _read(self, part: list[Wanted]) -> list[Read]:
        return [
            Bad(one.path, self._known_bad[one.path])
            if one.path in self._known_bad
            else read(one.path, *one.stamp, one.cut_of)
            for one in part
        ]


@contextmanager
def _failures(source: _Source) -> Iterator[None]:
    """DALI's errors as `DecodingFailed`, which knows what DALI was working on."""
    try:
        yield
    except RuntimeError as error:
        images = [image for fed in source.fed for image in fed.images]
        raise DecodingFailed(_said(error), images) from error


def _said(error: RuntimeError) -> str:
    """What happened, on one line: between the graph's description and advice or a stack."""
    said = str(error).rpartition("encountered:")[2]
    for after in ("Stacktrace (", "Current pipeline object"):
        said = said.partition(after)[0]
    return " ".join(said.split())


def _graph(
    source: _Source, size: int, most: int, device: torch.device, threads: int, whole: bool
) -> Any:
    """The pipeline, built: batches of the source -> uint8 ``[height, width, 3]`` each."""
    from nvidia.dali import Pipeline, backend, fn, types

    options: dict[str, Any] = {"device": "cpu"}
    if device.type == "cuda":
        # As the decoder of a CPU makes colours of chroma, which nvJPEG's default does coarsely.
        options = {"device": "mixed", "jpeg_fancy_upsampling": True}
    # Before DALI had the choice, it never turned images by their EXIF orientation.
    if backend.GetSchema("decoders__ImageSlice").HasArgument("adjust_orientation"):
        options["adjust_orientation"] = False

    pipe = Pipeline(
        batch_size=most,
        num_threads=threads,
        device_id=_device_id(device),
        prefetch_queue_depth=_DECODED_AHEAD,
    )
    # Weak: DALI's nodes refer to each other in circles, which would keep files' bytes until the
    # garbage collector finds them.
    held = cast("Callable[[], _Source]", weakref.ref(source))
    columns = [(types.UINT8, 1), (types.INT32, 1), (types.INT32, 1)]
    if whole:
        columns += [(types.FLOAT, 1), (types.INT32, 1)]
    with pipe:
        data, corner, shape, *rest = fn.external_source(
            lambda: held()(),
            num_outputs=len(columns),
            dtype=[dtype for dtype, _ in columns],
            ndim=[ndim for _, ndim in columns],
        )
        images = fn.decoders.image_slice(data, corner, shape, axis_names="HW", **options)
        if whole:
            resized, start = rest
            images = fn.resize(
                images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True
            )
            images = fn.slice(images, start=start, shape=[size, size], axis_names="HW")
        pipe.set_outputs(images)
    try:
        pipe.build()
    except RuntimeError as error:
        raise DataError(
            f"data.pipeline: DALI does not start on {device}: {_said(error)}"
        ) from error
    return pipe


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _resized(
    outputs: Any, images: list[Encoded], size: int, pool: ThreadPoolExecutor, threads: int
) -> torch.Tensor:
    """Decoded parts of images -> ``[n, 3, size, size]``."""
    batch = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
    # By numpy: torch's copy would start threads of its own in each thread of the pool.
    rows = batch.numpy()

    def resize(numbers: range) -> None:
        for i in numbers:
            (height, width), (top, left) = images[i].cut.resized, images[i].cut.corner
            part = torch.from_numpy(np.asarray(outputs[i])).permute(2, 0, 1)
            if part.shape[1:] != (height, width):
                part = interpolate(part[None], (height, width), mode="bilinear", antialias=True)[0]
            rows[i] = part.numpy()[:, top : top + size, left : left + size]

    step = -(-len(images) // threads)
    parts = (range(len(images))[first : first + step] for first in range(0, len(images), step))
    for _ in pool.map(resize, parts):
        pass
    return batch


def _copied(
    outputs: Any, size: int, device: torch.device, stream: torch.cuda.Stream | None
) -> torch.Tensor:
    """Finished images of DALI's memory -> ``[n, 3, size, size]`` of torch's."""
    from nvidia.dali.plugin.pytorch import feed_ndarray

    shape = (len(outputs), size, size, 3)
    if stream is None:
        copy = torch.empty(shape, dtype=torch.uint8)
        feed_ndarray(outputs.as_tensor(), copy)
        return copy.permute(0, 3, 1, 2).contiguous()
    with torch.cuda.stream(stream):
        copy = torch.empty(shape, dtype=torch.uint8, device=device)
        feed_ndarray(outputs.as_tensor(), copy, cuda_stream=stream)
        pixels = copy.permute(0, 3, 1, 2).contiguous()
    # The copies alone are waited for, not the network's work on its own stream.
    stream.synchronize()
    pixels.record_stream(torch.cuda.current_stream(device))
    return pixels
