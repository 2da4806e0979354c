"""Training for some of the classes: draw, loss, and what decides which epoch is best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from fastprune.data import ClassDraw, DataOptions, Splits, load
from fastprune.errors import TrainingError
from fastprune.training import FocusOptions, TrainingOptions, evaluate, fit
from fastprune.training.distill import distillation_loss, label_loss
from fastprune.training.metrics import Metrics, Totals
from fastprune.training.options import EarlyStopOptions
from fastprune.training.result import EpochRecord, best_epoch, stalled

Make = Callable[..., nn.Sequential]
FOCUS = FocusOptions(classes=(3, 5))


def recipe(**given: Any) -> TrainingOptions:
    return TrainingOptions.model_validate({"epochs": 2, "lr": 0.05, "precision": "fp32", **given})


def test_the_loss_is_that_of_class_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 10, generator=draw)
    labels = torch.arange(12) % 10
    weights = torch.ones(10)
    weights[[3, 5]] = 5

    found = label_loss(logits, labels, weights=weights[labels])

    torch.testing.assert_close(found, F.cross_entropy(logits, labels, weight=weights))
    assert not torch.isclose(found, F.cross_entropy(logits, labels))
    taught = distillation_loss(
        logits, logits, labels, temperature=2, alpha=0.25, weights=weights[labels]
    )
    torch.testing.assert_close(taught, 0.75 * found)


class Watched:
    """Training images, and what was asked for; another's labels, perhaps."""

    def __init__(self, splits: Splits) -> None:
        self._train = splits.train
        self.asked: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._train, name)

    def epoch(self, epoch: int, start: int = 0, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append(options)
        return self._train.epoch(epoch, start, **options)


def test_a_step_follows_draw_and_weights(make_model: Make, few_digits: Splits) -> None:
    focus = FocusOptions(classes=(3, 5), sample_ratio=4, weight=2)
    options = recipe(epochs=1, momentum=0, weight_decay=0, schedule="constant", focus=focus)
    model, own = make_model(dropout=0.0), make_model(dropout=0.0)
    watched = Watched(few_digits)

    fit(model, replace(few_digits, train=watched), options, seed=0, device="cpu")

    assert watched.asked[0]["draw"] == ClassDraw((3, 5), 4)
    weights = torch.ones(10)
    weights[[3, 5]] = 2
    optimizer = torch.optim.SGD(own.parameters(), lr=0.05)
    own.train().to(memory_format=torch.channels_last)
    for x, y in few_digits.train.epoch(0, draw=ClassDraw((3, 5), 4)):
        optimizer.zero_grad()
        F.cross_entropy(own(x), y, weight=weights).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_without_focus_nothing_is_drawn(make_model: Make, few_digits: Splits) -> None:
    watched = Watched(few_digits)
    result = fit(make_model(), replace(few_digits, train=watched), recipe(), seed=0, device="cpu")
    assert all("draw" not in options for options in watched.asked)
    assert result.history[0].validation_focus is None


def test_focus_helps_its_classes(make_model: Make) -> None:
    splits = load(DataOptions(batch_size=32, validation=200, train_limit=800), seed=0)

    def accuracy(**given: Any) -> float:
        model = make_model(dropout=0.0)
        fit(model, splits, recipe(epochs=4, **given), seed=0, device="cpu")
        found = evaluate(model, splits.test, device="cpu", by_class=10).mean_of((3, 5))
        assert found is not None
        return found

    assert accuracy(focus=FOCUS) > accuracy() + 5


def record(epoch: int, top1: float, focus: float | None) -> EpochRecord:
    rest: dict[str, Any] = dict.fromkeys(EpochRecord.__dataclass_fields__, 0.0)
    given = {"epoch": epoch, "validation_top1": top1, "validation_focus": focus}
    return EpochRecord(**{**rest, **given})


def test_the_best_epoch_and_early_stopping_go_by_the_classes_in_focus() -> None:
    history = [record(1, 50, 60), record(2, 60, 70), record(3, 70, 65), record(4, 80, 70)]
    patience = EarlyStopOptions(patience=2)

    assert best_epoch(history) == 2
    assert stalled(history, patience)
    assert not stalled(history[:3], patience)
    plain = [replace(each, validation_focus=None) for each in history]
    assert best_epoch(plain) == 4
    assert not stalled(plain, patience)


def test_the_kept_weights_are_the_best_of_the_classes(
    make_model: Make, few_digits: Splits
) -> None:
    model = make_model()
    result = fit(
        model, few_digits, recipe(epochs=6, keep="best", focus=FOCUS), seed=0, device="cpu"
    )

    assert few_digits.validation is not None
    found = evaluate(
        model, few_digits.validation, device="cpu", channels_last=True, by_class=10
    ).mean_of(FOCUS.classes)
    assert found == max(each.validation_focus or 0 for each in result.history)
    assert found == result.history[result.kept_epoch - 1].validation_focus


def test_accuracies_by_class() -> None:
    totals = Totals(torch.device("cpu"), classes=4)
    logits = torch.eye(4)[[0, 0, 1, 3, 3]]
    totals.add(logits[:2], torch.tensor([0, 1]), torch.zeros(()))
    totals.add(logits[2:], torch.tensor([1, 3, 1]), torch.zeros(()))

    found = totals.read()

    assert found.by_class == (100, pytest.approx(100 / 3), None, 100)
    assert found.mean_of((0, 1)) == pytest.approx(200 / 3)
    assert found.mean_of((2, 0)) == 100
    assert found.mean_of((2,)) is None
    assert "by_class" not in Metrics(1, 2, 3, 4).to_dict()
    assert Metrics(**found.to_dict()) == found


def test_classes_that_are_not_there_are_refused(make_model: Make, few_digits: Splits) -> None:
    options = recipe(focus=FocusOptions(classes=(1, 10)))
    with pytest.raises(TrainingError, match=r"finetune\.focus\.classes: got 10; .* 0 to 9"):
        fit(make_model(), few_digits, options, seed=0, device="cpu")
    for wrong in ((), (3, 3), (-1,)):
        with pytest.raises(ValidationError, match="classes"):
            FocusOptions(classes=wrong)
