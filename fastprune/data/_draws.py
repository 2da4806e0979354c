"""Orders and random numbers of an epoch, as functions of the seed, the epoch and the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "crop_boxes",
    "epoch_draws",
    "epoch_order",
    "image_generator",
    "stratified_order",
    "weighted_order",
]

# What a stream of random numbers is for: two uses of one seed must not see the same numbers.
_ORDER, _AUGMENT, _SPLIT, _WEIGHTED = 1, 2, 3, 4


def epoch_order(indices: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """``indices`` in the order of an epoch."""
    words = np.random.SeedSequence((seed, epoch, _ORDER)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
    order = torch.randperm(len(indices), generator=generator).numpy()
    return np.asarray(indices[order], np.int64)


def weighted_order(
    indices: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """As many of ``indices`` as there are, drawn for an epoch with repetition.

    Args:
        indices: ``[N]``.
        weights: ``[N]`` how often each is drawn, relative to the others; not all 0.
        seed: of the draw.
        epoch: likewise.
    """
    generator = np.random.Generator(
        np.random.Philox(np.random.SeedSequence((seed, epoch, _WEIGHTED)))
    )
    ends = np.cumsum(weights)
    places = np.searchsorted(ends, generator.random(len(indices)) * ends[-1], side="right")
    # A number next to 1 may round up to the end itself.
    return np.asarray(indices[places.clip(max=int(np.flatnonzero(weights)[-1]))], np.int64)


def epoch_draws(seed: int, epoch: int, images: int, columns: int) -> npt.NDArray[np.float64]:
    """``[images, columns]`` numbers in [0, 1); row i is image i's, however many rows there are."""
    sequence = np.random.SeedSequence((seed, epoch, _AUGMENT))
    return np.random.Generator(np.random.Philox(sequence)).random((images, columns))


def crop_boxes(draws: npt.NDArray[np.float64], padding: int, flip: bool) -> npt.NDArray[np.int32]:
    """Crops out of a frame ``padding`` wide, by three uniform numbers each.

    Args:
        draws: ``[N, 3]``: row, column, flip.
        padding: width of the frame in pixels.
        flip: whether any image is mirrored.

    Returns:
        ``[N, 3]``: row and column in the frame, 0 to 2·padding; 1 to mirror, one time in two.
    """
    boxes = np.zeros(draws.shape, np.int32)
    boxes[:, :2] = draws[:, :2] * (2 * padding + 1)
    if flip:
        boxes[:, 2] = draws[:, 2] < 0.5
    return boxes


def image_generator(seed: int, epoch: int, image: int) -> np.random.Generator:
    """The numbers of one image of one epoch, where it is not known how many it takes."""
    key = np.random.SeedSequence((seed, epoch, _AUGMENT)).generate_state(2, np.uint64)
    # The lowest word of the counter runs; the image in a higher one keeps images apart.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, image, 0]))


def stratified_order(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A shuffle of 0..N-1 whose every first part has the classes in proportion, within one."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _SPLIT))))
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, count)
    # Image k of n of a class stands at (k + 1/2) / n of the way; ties fall by chance.
    place = (rank + 0.5) / np.repeat(count, count)
    return np.asarray(by_class[np.lexsort((generator.random(len(labels)), place))], np.int64)
