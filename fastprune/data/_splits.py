"""A dataset's options to its train, validation and test pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastprune.data import _room
from fastprune.data._choice import open_pipeline
from fastprune.data._dataset import Dataset, Files, Source, registry
from fastprune.data._draws import stratified_order
from fastprune.data._listing import Listing, listing_of
from fastprune.data._options import DataOptions
from fastprune.data._pipeline import DataInfo, Feed, InputPipeline, Splits
from fastprune.data._telling import SILENT, Teller
from fastprune.errors import DataError, nearest
from fastprune.files import cache_folder

__all__ = ["TrainingImages", "feeds", "load", "load_test", "load_training"]

_TEST_SEED = 0
"""Seed of a shortened test set: the same images for every run, so that runs compare."""


def load(options: DataOptions, seed: int, teller: Teller = SILENT) -> Splits:
    """The pipelines of a dataset.

    The seed chooses the validation images, the images of ``train_limit``, order and augmentation.
    ``validation`` is taken first, ``train_limit`` of what is left. ``teller`` hears of long work
    and of image files that are left out.

    Raises:
        DataError: no such dataset, it is not there or not laid out as expected, or the options
            leave nothing to train on.
    """
    found, info = feeds(options, seed)
    opened = {part: open_pipeline(f, options.pipeline, teller) for part, f in found.items()}
    return Splits(
        train=opened["train"],
        validation=opened.get("validation"),
        test=opened["test"],
        info=info,
        listings=_listings(train=found["train"].source, test=found["test"].source),
    )


class TrainingImages(NamedTuple):
    """The training images as evaluation sees images.

    Attributes:
        pipeline: in order, not augmented, in batches of ``eval_batch_size``.
        info: facts about the dataset.
        listings: as `Splits` has them, of the folder ``train``.
    """

    pipeline: InputPipeline
    info: DataInfo
    listings: Mapping[str, Listing]


def load_training(options: DataOptions, seed: int, teller: Teller = SILENT) -> TrainingImages:
    """The training images of `load`, every one of them, as evaluation sees images.

    Raises:
        DataError: as `load`.
    """
    found, info = feeds(options, seed)
    size = options.eval_batch_size
    feed = replace(found["train"], augment=False, shuffle=False, batch_size=size)
    pipeline = open_pipeline(feed, options.pipeline, teller)
    return TrainingImages(pipeline, info, _listings(train=feed.source))


def feeds(options: DataOptions, seed: int) -> tuple[dict[str, Feed], DataInfo]:
    """What `load` opens: the train, test and, where there is one, validation feed.

    Raises:
        DataError: as `load`.
    """
    dataset = _dataset(options)
    info = _info(dataset, options)
    source = dataset.train()
    order = stratified_order(source.labels, seed)
    held = _held_out(options, len(source.labels))
    validation, train = order[:held], order[held:][: options.train_limit]
    found = {
        "train": _feed(dataset, source, train, info, options, seed, training=True),
        "test": _test(dataset, info, options),
    }
    if held:
        found["validation"] = _feed(dataset, source, validation, info, options, seed)
    return _sharing_room(found), info


def _sharing_room(found: dict[str, Feed]) -> dict[str, Feed]:
    """The same, each knowing what room for decoded images those before it take.

    Images for evaluation come first: they are looked at most often, and take less.
    """
    taken, unwritten, shared = 0, 0, dict(found)
    for part in sorted(found, key=lambda part: found[part].shuffle):
        feed = replace(found[part], cache_taken=taken, cache_unwritten=unwritten)
        shared[part] = feed
        # Nothing comes after those for training, so nobody asks how much they take.
        if not feed.shuffle and _room.unsupported(feed) is None:
            taken += _room.needed(feed).bytes
            unwritten += 0 if _room.place_of(feed).path.exists() else _room.needed(feed).bytes
    return shared


def load_test(options: DataOptions, teller: Teller = SILENT) -> tuple[InputPipeline, DataInfo]:
    """The test pipeline alone; the training images need not be there.

    Raises:
        DataError: no such dataset, it is not there, or not laid out as expected.
    """
    dataset = _dataset(options)
    info = _info(dataset, options)
    return open_pipeline(_test(dataset, info, options), options.pipeline, teller), info


def _dataset(options: DataOptions) -> Dataset:
    if options.name not in registry:
        raise DataError(
            f"data.name: unknown dataset {options.name!r}{nearest(options.name, registry.names())}"
        )
    return registry.get(options.name).build(options)


def _info(dataset: Dataset, options: DataOptions) -> DataInfo:
    given = options.normalization
    return DataInfo(
        num_classes=len(dataset.classes),
        input_shape=dataset.input_shape,
        mean=given.mean if given else dataset.mean,
        std=given.std if given else dataset.std,
        classes=dataset.classes,
    )


def _held_out(options: DataOptions, total: int) -> int:
    given = options.validation
    held = given if isinstance(given, int) else round(given * total)
    if given and not 0 < held < total:
        raise DataError(
            f"data.validation: got {given}, which holds out {held} of {total} training images; "
            f"expected a fraction below 1 or a count of 1 to {total - 1}, or 0 for none"
        )
    return held


def _listings(**sources: Source) -> dict[str, Listing]:
    return {
        part: listing_of(source) for part, source in sources.items() if isinstance(source, Files)
    }


def _test(dataset: Dataset, info: DataInfo, options: DataOptions) -> Feed:
    source = dataset.test()
    chosen = np.arange(len(source.labels))
    if options.test_limit is not None:
        chosen = stratified_order(source.labels, _TEST_SEED)[: options.test_limit]
    return _feed(dataset, source, chosen, info, options, seed=0)


def _feed(
    dataset: Dataset,
    source: Source,
    chosen: npt.NDArray[np.int64],
    info: DataInfo,
    options: DataOptions,
    seed: int,
    *,
    training: bool = False,
) -> Feed:
    return Feed(
        source=source,
        indices=np.sort(chosen),
        transform=dataset.transform,
        augment=training and bool(options.augment),
        shuffle=training,
        batch_size=options.batch_size if training else options.eval_batch_size,
        mean=info.mean,
        std=info.std,
        seed=seed,
        workers=options.workers,
        max_bad_images=options.max_bad_images,
        cache=_cache(options),
        cache_limit=round(options.cache_limit * 1e9),
    )


def _cache(options: DataOptions) -> Path | None:
    """The folder of decoded images; None where there is to be none, or no home folder."""
    if options.cache is False:
        return None
    if options.cache is not None:
        return options.cache.expanduser()
    return cache_folder()
