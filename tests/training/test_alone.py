"""Training batches that bad files left with one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_files import feed_of, photographs
from torch import nn

from fastprune.data import DataInfo, InputPipeline, Splits
from fastprune.data._choice import open_pipeline
from fastprune.errors import DataError
from fastprune.training import TrainingOptions, fit, recalibrate_batch_norm
from fastprune.training._alone import images_between, left_alone


def network() -> nn.Sequential:
    """With a batch norm at 1x1, which a single image has no variance for."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, 8),
    )


def splits_of(folder: Path, broken: tuple[int, ...], size: int = 2) -> Splits:
    source = photographs(folder, 8, broken)
    feed = feed_of(source, batch_size=size, max_bad_images=len(broken))
    train = open_pipeline(feed, "torchvision")
    tested = open_pipeline(replace(feed, augment=False, shuffle=False), "torchvision")
    info = DataInfo(8, (3, 24, 24), feed.mean, feed.std, tuple("abcdefgh"))
    return Splits(train, None, tested, info)


def trained(
    splits: Splits, folder: Path | None, hook: Callable[[float], None], **given: object
) -> nn.Module:
    model = network()
    options = TrainingOptions.model_validate(
        {"epochs": 4, "lr": 0.1, "precision": "fp32", "checkpoint_every": 0, **given}
    )
    fit(model, splits, options, directory=folder, seed=0, device="cpu", after_step=hook)
    return model


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (2, 8), (4, 4)])
def test_such_batches_are_left_out_and_training_goes_on_alike(
    accumulate: int, steps: int, tmp_path: Path
) -> None:
    """One of eight images is bad: of four batches of two, another one shrinks in every epoch."""
    splits = splits_of(tmp_path / "a", broken=(3,))
    shrunk = [[len(y) for _, y in splits.train.epoch(epoch)].index(1) for epoch in range(4)]
    # In the middle of a step, and at its end.
    assert {batch % 2 for batch in shrunk} == {0, 1}
    rates: list[float] = []
    model = trained(splits, tmp_path / "whole", rates.append, accumulate=accumulate)
    assert len(rates) == steps

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            trained(splits, tmp_path / "parts", after(2, stop), accumulate=accumulate)
    again = trained(splits, tmp_path / "parts", rates.append, accumulate=accumulate)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def after(steps: int, hook: Callable[[float], None]) -> Callable[[float], None]:
    done = 0

    def count(rate: float) -> None:
        nonlocal done
        done += 1
        if done == steps:
            hook(rate)

    return count


def test_a_left_over_of_two_with_a_bad_one_costs_its_step_alone(tmp_path: Path) -> None:
    splits = splits_of(tmp_path / "a", broken=(3,), size=3)
    rates: list[float] = []
    trained(splits, None, rates.append, epochs=12)
    last = [[len(y) for _, y in splits.train.epoch(epoch)][-1] for epoch in range(12)]
    assert 1 in last
    assert len(rates) == 12 * 3 - last.count(1)


def test_epochs_of_nothing_but_such_batches_are_refused(tmp_path: Path) -> None:
    splits = splits_of(tmp_path / "a", broken=(0, 1, 2, 3, 4, 5, 6), size=8)
    with pytest.raises(DataError, match=r"^finetune: of every training batch of epoch 1 one"):
        trained(splits, None, lambda _: None)


def test_statistics_are_taken_of_the_other_batches(tmp_path: Path) -> None:
    class OwnNorm(nn.BatchNorm2d):
        """Runs its own code, which refuses a single value a channel."""

    splits = splits_of(tmp_path / "a", broken=(3,))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), OwnNorm(3))
    recalibrate_batch_norm(model, splits.train, 99, "cpu")
    pooled = torch.cat([x.mean((2, 3)) for x, y in splits.train.epoch(0) if len(y) > 1])
    torch.testing.assert_close(model[1].running_mean, pooled.mean(0))
    torch.testing.assert_close(model[1].running_var, pooled.var(0))


def test_a_batch_that_has_one_image_by_right_is_not_left_out(tmp_path: Path) -> None:
    pipeline: InputPipeline = splits_of(tmp_path / "a", broken=(), size=7).test
    assert images_between(pipeline, 0, 1) == 7
    assert images_between(pipeline, 0, 2) == 8
    assert not left_alone(pipeline, 1, 1)
    assert left_alone(pipeline, 0, 1)
    assert not left_alone(pipeline, 0, 2)
