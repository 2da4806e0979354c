"""What feeds a network: the protocol of all input pipelines, and choosing one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastprune.data._dataset import Source, Transform

__all__ = ["DataInfo", "Feed", "InputPipeline", "Splits", "open_pipeline"]

Batch = tuple[torch.Tensor, torch.Tensor]


class InputPipeline(Protocol):
    """Batches of images, epoch by epoch.

    What image i looks like in epoch e follows from the seed, e and i alone: not from workers,
    batch size, the place in a batch, torch's global generators, or which implementation it is.
    """

    @property
    def images(self) -> int:
        """Images of an epoch."""

    @property
    def batches(self) -> int:
        """Batches of an epoch."""

    @property
    def batch_size(self) -> int:
        """Images of every batch but the last."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch ``start`` on.

        One epoch at a time: a new call ends the one before.

        Yields:
            images ``[N, C, H, W]`` float32, normalised, and labels ``[N]`` int64, on the CPU
            (pinned where there is a GPU).

        Raises:
            DataError: an image cannot be read; the message names the file.
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
    """

    train: InputPipeline
    validation: InputPipeline | None
    test: InputPipeline
    info: DataInfo

    def close(self) -> None:
        """Closes every pipeline."""
        for pipeline in (self.train, self.validation, self.test):
            if pipeline is not None:
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


def open_pipeline(feed: Feed, kind: Literal["auto", "torchvision"] = "auto") -> InputPipeline:
    """The pipeline of that kind for a feed."""
    # Imported here, so that an option or a protocol can be named without loading torchvision.
    from fastprune.data import _torchvision

    return _torchvision.open_pipeline(feed)
