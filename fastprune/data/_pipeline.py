"""What feeds a network: the protocol of all input pipelines, and the data they are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastprune.data._batches import WHOLE, ClassDraw, Part
from fastprune.data._dataset import Source, Transform
from fastprune.data._listing import Listing

__all__ = [
    "DataInfo",
    "Feed",
    "InputPipeline",
    "Kind",
    "Placement",
    "Splits",
]

Batch = tuple[torch.Tensor, torch.Tensor]

Kind = Literal["auto", "device", "dali", "torchvision"]
"""What makes the batches; auto takes the best one at hand."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a network wants its images.

    Attributes:
        device: where.
        dtype: of the images: float32, bfloat16 or float16.
        channels_last: their memory format.
    """

    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"dtype: expected float32, bfloat16 or float16, got {self.dtype}")

    def of(self, batch: Batch) -> Batch:
        """A batch so placed; copies from pinned memory are not waited for."""
        x, y = (part.to(self.device, non_blocking=True) for part in batch)
        # After the copy: the device converts and rearranges faster than the host.
        x = x.to(self.dtype)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, y


class InputPipeline(Protocol):
    """Batches of images, epoch by epoch.

    What image i looks like in epoch e follows from the seed, e and i alone: not from workers,
    batch size, the place in a batch, ranks, torch's global generators, or which implementation it
    is.
    """

    @property
    def kind(self) -> Kind:
        """Which implementation it is."""

    @property
    def images(self) -> int:
        """Images of an epoch."""

    @property
    def batches(self) -> int:
        """Batches of an epoch."""

    @property
    def batch_size(self) -> int:
        """Images of every batch but the last."""

    @property
    def highest_label(self) -> int:
        """Of all images, so that no batch need be looked at; -1 without images."""

    @property
    def bad_images(self) -> tuple[str, ...]:
        """Names of the files that could not be read so far, and were left out of their batches."""

    def epoch(
        self,
        epoch: int,
        start: int = 0,
        *,
        placement: Placement = Placement(),
        spread: bool = False,
        draw: ClassDraw | None = None,
        part: Part = WHOLE,
    ) -> Iterator[Batch]:
        """The batches of an epoch from batch ``start`` on.

        One epoch at a time: a new call ends the one before. A batch's memory is its own.

        Args:
            epoch: number of the epoch.
            start: number of its first batch.
            placement: where and how the images are wanted.
            draw: images of training are drawn with repetition, as many as there are, some classes
                more often. Which follows from the seed and the epoch; an image that comes twice
                looks the same both times.
            spread: images that are not shuffled come in another order, always the same, in which
                every first part has the classes in the proportion of the whole, within one.
            part: of the epoch, where several processes share it; ``start`` counts this one's
                batches.

        Yields:
            images ``[N, C, H, W]``, normalised, and labels ``[N]`` int64, as ``placement`` says.

        Raises:
            DataError: more images cannot be read than may be, or files changed since the pipeline
            was opened; the message names them.
            ValueError: ``start`` is below 0, or images that are not shuffled are to be drawn.
        """

    def close(self) -> None:
        """Ends worker processes and frees what was held; a later epoch starts them again."""


@dataclass(frozen=True, slots=True)
class DataInfo:
    """Facts about a dataset as it is fed to a network.

    Attributes:
        num_classes: how many classes.
        input_shape: ``(C, H, W)``.
        mean: normalisation in force, on the scale of 0 to 1.
        std: normalisation in force.
        classes: their names, in the order of the labels.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts of a dataset, no image in two of them.

    Attributes:
        train: shuffled and augmented.
        validation: held out of the training images, in order, not augmented; None where
            ``validation`` is 0. It never stands in for the test images, nor they for it.
        test: in order, not augmented.
        info: facts about the dataset.
        listings: of its folders ``train`` and ``test``, where it is image files.
    """

    train: InputPipeline
    validation: InputPipeline | None
    test: InputPipeline
    info: DataInfo
    listings: Mapping[str, Listing] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, InputPipeline]:
        """Those that there are, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: pipeline for name, pipeline in parts.items() if pipeline is not None}

    @property
    def bad_images(self) -> tuple[str, ...]:
        """Names of the files that could not be read so far, of all three parts."""
        return tuple(name for part in self.parts.values() for name in part.bad_images)

    def close(self) -> None:
        """Closes every pipeline."""
        for pipeline in self.parts.values():
            pipeline.close()


@dataclass(frozen=True, slots=True)
class Feed:
    """All that an implementation has to know; plain data.

    Attributes:
        source: the images.
        indices: which of them, ascending; they are the i of the protocol.
        transform: what is done to an image.
        augment: at random; otherwise as for evaluation.
        shuffle: a new order every epoch.
        batch_size: images of a batch.
        mean: normalisation.
        std: normalisation.
        seed: of order and augmentation.
        workers: processes, where an implementation uses any; None lets it choose.
        max_bad_images: files that may be unreadable.
        cache: folder for decoded images; None keeps none.
        cache_limit: bytes that all sets may take there.
        cache_taken: of these, what other sets of the same run take.
        cache_unwritten: of these again, what is not on disk yet.
    """

    source: Source
    indices: npt.NDArray[np.int64]
    transform: Transform
    augment: bool
    shuffle: bool
    batch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    workers: int | None = None
    max_bad_images: int = 0
    cache: Path | None = None
    cache_limit: int = 8 * 10**9
    cache_taken: int = 0
    cache_unwritten: int = 0
