from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastprune.data import DataOptions, InputPipeline, Splits, load_training
from fastprune.errors import DivergenceError, TrainingError
from fastprune.training import mean_logits

DIGITS = tuple("0123456789")


class FirstNumbers(nn.Module):
    """Logits that are numbers of the image, so that batches change none of them."""

    def __init__(self, outputs: int = 10) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, 100 : 100 + self.outputs]


def training_images(**options: Any) -> InputPipeline:
    return load_training(DataOptions(train_limit=300, **options), seed=0).pipeline


def test_each_row_is_the_mean_over_the_images_of_a_class(
    make_model: Callable[..., nn.Sequential],
) -> None:
    model = make_model()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = training_images()
    found = mean_logits(model, images, DIGITS, device="cpu")

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    x, y = (torch.cat(parts) for parts in zip(*images.epoch(0), strict=True))
    with torch.no_grad():
        logits = model.eval()(x).double()
    expected = torch.stack([logits[y == k].mean(0) for k in range(10)]).numpy()
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-6)
    assert found.images.dtype == np.int64
    assert found.images.tolist() == torch.bincount(y).tolist()
    assert found.images.sum() == 300


def test_the_batch_size_changes_the_last_bits_alone() -> None:
    one, seven, all_at_once = (
        mean_logits(FirstNumbers(), training_images(eval_batch_size=size), DIGITS, device="cpu")
        for size in (1, 7, 512)
    )

    for found in (one, seven):
        assert np.array_equal(found.images, all_at_once.images)
        # 300 additions in float32 would differ by 1e-6.
        np.testing.assert_allclose(found.values, all_at_once.values, rtol=0, atol=1e-14)


def test_outputs_of_no_class_are_left_out() -> None:
    images = training_images()
    wide = mean_logits(FirstNumbers(12), images, DIGITS, device="cpu")

    assert wide.values.shape == (10, 10)
    assert np.array_equal(
        wide.values, mean_logits(FirstNumbers(), images, DIGITS, device="cpu")[0]
    )


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(TrainingError, match=r"no images of class ten \(10\), eleven \(11\); exp"):
        mean_logits(FirstNumbers(12), training_images(), (*DIGITS, "ten", "eleven"), device="cpu")


def test_a_network_of_fewer_classes_is_refused(few_digits: Splits) -> None:
    with pytest.raises(TrainingError, match="has 4 classes, but the dataset has a label 9"):
        mean_logits(FirstNumbers(4), few_digits.test, DIGITS, device="cpu")


def test_logits_that_are_no_numbers_are_refused(few_digits: Splits) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    nn.init.constant_(model[1].bias, torch.inf)
    with pytest.raises(DivergenceError, match="not finite"):
        mean_logits(model, few_digits.test, DIGITS, device="cpu")
