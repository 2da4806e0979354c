"""What makes one answer of several experts' features."""

from __future__ import annotations

from torch import nn

__all__ = ["FEWEST_FEATURES", "FusionHead"]

_WIDEST = 384
FEWEST_FEATURES = 4
"""Features below which a hidden layer would have no units."""


class FusionHead(nn.Sequential):
    """Linear(T, h), BN, ReLU, Dropout, Linear(h, h/2), BN, ReLU, Dropout, Linear(h/2, classes).

    h is half of the T features and at most 384; dropout is 0.3. Gets ``[N, T]`` and gives
    ``[N, classes]``.

    Args:
        features: T, of all experts together.
        num_classes: outputs.

    Raises:
        ValueError: there are fewer than four features, or no classes.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        if features < FEWEST_FEATURES:
            raise ValueError(f"features: expected {FEWEST_FEATURES} or more, got {features}")
        if num_classes < 1:
            raise ValueError(f"num_classes: expected 1 or more, got {num_classes}")
        hidden = min(_WIDEST, features // 2)
        super().__init__(
            nn.Linear(features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, hidden // 2),
            nn.BatchNorm1d(hidden // 2),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden // 2, num_classes),
        )
        self.features = features
        self.num_classes = num_classes
