"""The loss of learning from labels and from another network."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["distillation_loss", "label_loss"]


def label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy, in fp32: the mean over the batch.

    Args:
        logits: ``[N, classes]``.
        labels: ``[N]``.
        label_smoothing: share of every label that is spread over all classes.
        weights: ``[N]`` of the images in the mean, as class weights are in torch's.
        total: what the weighted sum is divided by; None: the sum of the weights.
    """
    if weights is None:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    losses = functional.cross_entropy(
        logits.float(), labels, label_smoothing=label_smoothing, reduction="none"
    )
    return (losses * weights).sum() / (weights.sum() if total is None else total)


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
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
        weights: likewise, as in `label_loss`.
        total: likewise.
    """
    own = functional.log_softmax(logits.float() / temperature, dim=1)
    taught = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    divergence = functional.kl_div(own, taught, reduction="batchmean", log_target=True)
    hard = label_loss(
        logits, labels, label_smoothing=label_smoothing, weights=weights, total=total
    )
    return (1 - alpha) * hard + alpha * temperature**2 * divergence
