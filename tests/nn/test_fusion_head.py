"""The fusion head's layers, as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastprune.nn import FusionHead


@pytest.mark.parametrize(
    ("features", "hidden"), [(4, 2), (9, 4), (768, 384), (770, 384), (5120, 384)]
)
def test_widths_follow_the_features(features: int, hidden: int) -> None:
    head = FusionHead(features, 10)

    linear = [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)]
    assert linear == [(features, hidden), (hidden, hidden // 2), (hidden // 2, 10)]
    one = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(module) for module in head] == [*one, *one, nn.Linear]
    assert [m.p for m in head if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    assert head.eval()(torch.zeros(2, features)).shape == (2, 10)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="features: expected 4 or more, got 3"):
        FusionHead(3, 10)
    with pytest.raises(ValueError, match="num_classes: expected 1 or more, got 0"):
        FusionHead(8, 0)
