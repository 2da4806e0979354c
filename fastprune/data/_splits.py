"""A dataset's options to its train, validation and test pipelines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastprune.data._dataset import Dataset, Source, registry
from fastprune.data._draws import stratified_order
from fastprune.data._options import DataOptions
from fastprune.data._pipeline import DataInfo, Feed, InputPipeline, Splits, open_pipeline
from fastprune.errors import DataError, nearest

__all__ = ["load", "load_test"]

_TEST_SEED = 0
"""Seed of a shortened test set: the same images for every run, so that runs compare."""


def load(options: DataOptions, seed: int) -> Splits:
    """The pipelines of a dataset.

    The seed chooses the validation images, the images of ``train_limit``, order and augmentation.
    ``validation`` is taken first, ``train_limit`` of what is left.

    Raises:
        DataError: no such dataset, it is not there or not laid out as expected, or the options
            leave nothing to train on.
    """
    dataset = _dataset(options)
    info = _info(dataset, options)
    source = dataset.train()
    total = len(source.labels)
    order = stratified_order(source.labels, seed)
    held = _held_out(options, total)
    validation, train = order[:held], order[held:][: options.train_limit]
    return Splits(
        train=_pipeline(dataset, source, train, info, options, seed, training=True),
        validation=_pipeline(dataset, source, validation, info, options, seed) if held else None,
        test=_test(dataset, info, options),
        info=info,
    )


def load_test(options: DataOptions) -> tuple[InputPipeline, DataInfo]:
    """The test pipeline alone; the training images need not be there.

    Raises:
        DataError: no such dataset, it is not there, or not laid out as expected.
    """
    dataset = _dataset(options)
    info = _info(dataset, options)
    return _test(dataset, info, options), info


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


def _test(dataset: Dataset, info: DataInfo, options: DataOptions) -> InputPipeline:
    source = dataset.test()
    chosen = np.arange(len(source.labels))
    if options.test_limit is not None:
        chosen = stratified_order(source.labels, _TEST_SEED)[: options.test_limit]
    return _pipeline(dataset, source, chosen, info, options, seed=0)


def _pipeline(
    dataset: Dataset,
    source: Source,
    chosen: npt.NDArray[np.int64],
    info: DataInfo,
    options: DataOptions,
    seed: int,
    *,
    training: bool = False,
) -> InputPipeline:
    feed = Feed(
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
    )
    return open_pipeline(feed, options.pipeline)
