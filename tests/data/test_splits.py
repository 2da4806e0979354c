from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fastprune.data import DataOptions, Images, load, load_test, load_training
from fastprune.errors import DataError


def indices(pipeline: Any) -> set[int]:
    return set(pipeline._feed.indices.tolist())


def labels(pipeline: Any) -> np.ndarray:
    source = pipeline._feed.source
    assert isinstance(source, Images)
    return source.labels[pipeline._feed.indices]


@pytest.mark.parametrize(("given", "held"), [(0.1, 153), (200, 200), (0.25, 382)])
def test_validation_images_are_held_out_by_class(given: float, held: int) -> None:
    splits = load(DataOptions(validation=given), seed=0)
    assert splits.validation is not None
    train, validation = indices(splits.train), indices(splits.validation)
    assert not train & validation
    assert len(train | validation) == 1527
    assert len(validation) == held
    counts = np.bincount(labels(splits.validation), minlength=10)
    share = np.bincount(np.concatenate([labels(splits.train), labels(splits.validation)])) / 1527
    assert np.abs(counts - held * share).max() <= 1


def test_the_seed_chooses_validation_but_never_the_test_images() -> None:
    first, second = (load(DataOptions(), seed=seed) for seed in (0, 1))
    assert indices(first.validation) != indices(second.validation)
    for (x, y), (again, _) in zip(first.test.epoch(0), second.test.epoch(3), strict=True):
        assert torch.equal(x, again)
        assert len(y)
    assert indices(load(DataOptions(), seed=0).validation) == indices(first.validation)


def test_test_images_are_none_of_the_training_images() -> None:
    splits = load(DataOptions(validation=0), seed=0)
    together = np.concatenate([splits.train._feed.source.pixels, splits.test._feed.source.pixels])
    assert len(together) == 1797
    assert np.abs(np.bincount(labels(splits.test)) - 27).max() <= 1
    # The digits hold no image twice, so that equal pixels would be one image in both parts.
    assert len(np.unique(together.reshape(1797, -1), axis=0)) == 1797


def test_no_validation_is_none() -> None:
    splits = load(DataOptions(validation=0), seed=0)
    assert splits.validation is None
    assert splits.train.images == 1527
    splits.close()


def test_limits_keep_the_classes_alike() -> None:
    splits = load(DataOptions(train_limit=100, test_limit=50, batch_size=32), seed=5)
    assert splits.train.images == 100
    assert splits.train.batches == 4
    assert np.bincount(labels(splits.train)).tolist() == [10] * 10
    assert np.bincount(labels(splits.test)).tolist() == [5] * 10
    assert not indices(splits.train) & indices(splits.validation)
    other = load(DataOptions(train_limit=100, test_limit=50), seed=6)
    assert indices(splits.train) != indices(other.train)
    assert indices(splits.test) == indices(other.test)


def test_normalization_can_be_given() -> None:
    given = {"mean": (0.5, 0.25, 0.0), "std": (1.0, 0.5, 2.0)}
    usual, info = load_test(DataOptions())
    test, changed = load_test(DataOptions.model_validate({"normalization": given}))
    assert changed.mean == given["mean"]
    assert changed.std == given["std"]
    x, _ = next(test.epoch(0))
    y, _ = next(usual.epoch(0))
    shape = (3, 1, 1)
    raw = y * torch.tensor(info.std).view(shape) + torch.tensor(info.mean).view(shape)
    back = x * torch.tensor(changed.std).view(shape) + torch.tensor(changed.mean).view(shape)
    torch.testing.assert_close(raw, back)
    assert raw.min() >= -1e-6
    assert raw.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "given",
    [
        {"validation": 1.0},
        {"validation": -1},
        {"validation": True},
        {"batch_size": 0},
        {"pipeline": "dali9"},
        {"colour": 1},
        {"normalization": {"mean": [0, 0, 0], "std": [1, 0, 1]}},
    ],
)
def test_wrong_options_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataOptions.model_validate(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "cifar"}, "data.name: unknown dataset 'cifar'; did you mean 'cifar10'"),
        ({"validation": 1527}, "data.validation: got 1527, which holds out 1527 of 1527"),
        ({"validation": 0.0001}, "data.validation: got 0.0001, which holds out 0 of 1527"),
        ({"image_size": 64}, "data.image_size: got 64, but digits has images of 32x32"),
    ],
)
def test_options_that_do_not_fit_the_dataset_say_so(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(DataOptions.model_validate(given), seed=0)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_every_option_is_described_in_the_schema() -> None:
    fields = DataOptions.model_json_schema()["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []


def test_training_images_come_in_order_and_as_they_are() -> None:
    # With 97, training at 32 images a batch leaves one image of an epoch out.
    options = DataOptions(train_limit=97, batch_size=32, eval_batch_size=40)
    splits, still = load(options, seed=3), load_training(options, seed=3)
    source = still.pipeline._feed.source
    assert splits.train.images == 96
    assert (still.pipeline.images, still.pipeline.batches, still.info) == (97, 3, splits.info)
    chosen = sorted(indices(splits.train))
    assert sorted(indices(still.pipeline)) == chosen
    mean, std = (torch.tensor(of)[:, None, None] for of in (still.info.mean, still.info.std))
    for epoch in (0, 1):
        x, y = (torch.cat(part) for part in zip(*still.pipeline.epoch(epoch), strict=True))
        assert y.tolist() == source.labels[chosen].tolist()
        raw = torch.from_numpy(source.pixels[chosen]) / 255
        assert torch.allclose(x, (raw - mean) / std, atol=1e-5)
