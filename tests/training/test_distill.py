from __future__ import annotations

import math

import pytest
import torch

from fastprune.training.distill import distillation_loss


def test_the_loss_is_the_formula() -> None:
    logits = [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]]
    teacher = [[0.5, 0.5, -1.0], [1.0, -2.0, 0.0]]
    labels, t, alpha = [0, 2], 3.0, 0.7

    def softmax(row: list[float], t: float) -> list[float]:
        total = sum(math.exp(v / t) for v in row)
        return [math.exp(v / t) / total for v in row]

    expected = 0.0
    for row, taught, label in zip(logits, teacher, labels, strict=True):
        p, q = softmax(taught, t), softmax(row, t)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        hard = -math.log(softmax(row, 1.0)[label])
        expected += ((1 - alpha) * hard + alpha * t * t * divergence) / 2
    found = distillation_loss(
        torch.tensor(logits),
        torch.tensor(teacher),
        torch.tensor(labels),
        temperature=t,
        alpha=alpha,
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_alpha_0_is_cross_entropy_and_1_is_zero_for_the_teacher_itself() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    other = torch.randn(4, 5)
    alone = distillation_loss(logits, other, labels, temperature=2, alpha=0, label_smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(alone, expected)
    same = distillation_loss(logits, logits, labels, temperature=2, alpha=1)
    assert abs(same.item()) < 1e-6
