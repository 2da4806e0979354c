"""How fast each input pipeline feeds a dataset on this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fastprune.data._choice import KINDS, Choice, choice, open_pipeline
from fastprune.data._dataset import Files
from fastprune.data._options import DataOptions
from fastprune.data._pipeline import Batch, Feed, InputPipeline, Kind, Placement
from fastprune.data._splits import feeds
from fastprune.data._telling import SILENT, Teller
from fastprune.errors import DataError

__all__ = ["PartSpeeds", "Speed", "measure_pipelines"]

# Enough for a rate; a test set of 50,000 files would be decoded for minutes.
_MOST_IMAGES = 1024


@dataclass(frozen=True, slots=True)
class Speed:
    """What one kind of pipeline does.

    Attributes:
        kind: which.
        images_per_second: from the second batch on; None where it does not feed these images.
        first_batch: seconds until the first one: workers start, a cache is decoded.
        problem: why it does not feed them, or None.
    """

    kind: Kind
    images_per_second: float | None
    first_batch: float | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class PartSpeeds:
    """Every kind on one part of a dataset.

    Attributes:
        part: train (shuffled, augmented) or test.
        speeds: of each kind.
        best: the fastest kind; torchvision at least feeds them.
        chosen: what ``data.pipeline: auto`` takes, and why.
    """

    part: str
    speeds: tuple[Speed, ...]
    best: Kind
    chosen: Choice


def measure_pipelines(
    options: DataOptions,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    seconds: float = 3.0,
    teller: Teller = SILENT,
) -> list[PartSpeeds]:
    """Feeds batches of the train and of the test images through every kind of pipeline.

    Of image files at most 1,024 are taken, so that a cache is decoded soon.

    Args:
        options: the dataset.
        seed: of order and augmentation.
        device: where a network would want its images, in float32 and channels_last.
        seconds: how long each kind is measured, after its first batch.
        teller: hears of the work.

    Raises:
        DataError: no such dataset, or it is not there.
    """
    limits = {
        "train_limit": min(options.train_limit or _MOST_IMAGES, _MOST_IMAGES),
        "test_limit": min(options.test_limit or _MOST_IMAGES, _MOST_IMAGES),
    }
    whole, _ = feeds(options, seed)
    chosen = {part: choice(feed) for part, feed in whole.items()}
    if isinstance(whole["train"].source, Files):
        whole, _ = feeds(options.model_copy(update=limits), seed)
    placement = Placement(torch.device(device), channels_last=True)
    found = []
    with teller.start("measuring pipelines", 2 * len(KINDS), "pipelines") as task:
        for part in ("train", "test"):
            speeds = []
            for kind in KINDS:
                speeds.append(_measured(whole[part], kind, placement, seconds, teller))
                task.advance(1)
            best = max(speeds, key=lambda speed: speed.images_per_second or 0.0)
            found.append(PartSpeeds(part, tuple(speeds), best.kind, chosen[part]))
    return found


def _measured(
    feed: Feed, kind: Kind, placement: Placement, seconds: float, teller: Teller
) -> Speed:
    try:
        pipeline = open_pipeline(replace(feed, max_bad_images=len(feed.indices)), kind, teller)
        try:
            return _timed(pipeline, kind, placement, seconds)
        finally:
            pipeline.close()
    except DataError as error:
        return Speed(kind, None, None, str(error))


def _timed(pipeline: InputPipeline, kind: Kind, placement: Placement, seconds: float) -> Speed:
    batches = _endless(pipeline, placement)
    start = time.perf_counter()
    next(batches)
    _wait(placement.device)
    begun = time.perf_counter()
    images = 0
    while (spent := time.perf_counter() - begun) < seconds:
        images += len(next(batches)[1])
        _wait(placement.device)
    return Speed(kind, round(images / spent, 1), round(begun - start, 3), None)


def _endless(pipeline: InputPipeline, placement: Placement) -> Iterator[Batch]:
    for epoch in itertools.count():
        some = False
        for batch in pipeline.epoch(epoch, placement=placement):
            some = True
            yield batch
        if not some:
            raise DataError("none of these images can be read")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
