from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from fastprune.data import DataOptions, load
from fastprune.data.digits import upsampled


def test_upsampling_is_bilinear_to_half_a_grey() -> None:
    images = load_digits().images
    found = upsampled(images.astype(np.int64))
    scaled = torch.from_numpy(images)[:, None] * 255 / 16
    expected = torch.nn.functional.interpolate(
        scaled, scale_factor=4, mode="bilinear", align_corners=False
    )[:, 0].numpy()
    assert found.shape == (1797, 32, 32)
    assert np.abs(found - expected).max() <= 0.5


def test_digits_are_rgb_of_32_and_normalised() -> None:
    splits = load(DataOptions(validation=0, augment=False, batch_size=1527), seed=0)
    x, y = next(splits.train.epoch(0))
    assert x.shape == (1527, 3, 32, 32)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x[:, 0], x[:, 2])
    assert abs(x.mean().item()) < 0.01
    assert abs(x.std().item() - 1) < 0.01
    assert splits.info.num_classes == 10
    assert splits.info.classes[3] == "3"
