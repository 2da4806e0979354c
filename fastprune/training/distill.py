"""The loss of learning from labels and from another network."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["distillation_loss"]


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """(1 - α) · CE(logits, labels) + α · T² · KL(teacher ‖ network), mean over the batch, fp32.

    Both distributions are softmaxes of logits / T; T² keeps the gradient's size as T changes.

    Args:
        logits: ``[N, classes]``.
        teacher_logits: ``[N, classes]``, without gradient.
        labels: ``[N]``.
        temperature: T.
        alpha: α, the teacher's share.
        label_smoothing: of the cross entropy.
    """
    own = functional.log_softmax(logits.float() / temperature, dim=1)
    taught = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    divergence = functional.kl_div(own, taught, reduction="batchmean", log_target=True)
    hard = functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    return (1 - alpha) * hard + alpha * temperature**2 * divergence
