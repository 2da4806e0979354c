"""Accuracy and loss, added up on the device and read once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastprune.distributed import sum_over_ranks

__all__ = ["Metrics", "Totals"]


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well a network does on some images.

    Attributes:
        top1: percent of images whose highest logit is the right class.
        top5: percent of images with the right class among the five highest logits (among all of
            them where there are fewer classes).
        loss: mean cross entropy.
        images: how many images.
        by_class: percent, top1 of each class by label, None where a class has no images; None
            where it was not asked for.
    """

    top1: float
    top5: float
    loss: float
    images: int
    by_class: tuple[float | None, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name; accuracies by class only where they are known."""
        found = asdict(self)
        if self.by_class is None:
            del found["by_class"]
        return found

    def mean_of(self, classes: Iterable[int]) -> float | None:
        """Mean top1 of classes, each counting the same, in percent; None where none has images."""
        by_class = self.by_class or ()
        known = [a for label in classes if (a := by_class[label]) is not None]
        return sum(known) / len(known) if known else None


class Totals:
    """Sums over batches; adding waits for nothing, reading waits for the device.

    Sums are int64 and float64, so that they do not depend on how many images there are. With
    ``classes``, as many are counted one by one too.
    """

    def __init__(self, device: torch.device, classes: int = 0) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        # Right ones, and all.
        self._by_class = torch.zeros(2, classes, dtype=torch.int64, device=device)
        self.images = 0

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            logits: ``[N, classes]``.
            labels: ``[N]``.
            loss: mean of the batch.
        """
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices
        right = best == labels[:, None]
        self._counts += torch.stack((right[:, 0].sum(), right.sum()))
        if classes := self._by_class.shape[1]:
            # Not bincount, which waits for the device.
            own = labels[:, None] == torch.arange(classes, device=labels.device)
            self._by_class += torch.stack(((own & right[:, :1]).sum(0), own.sum(0)))
        self._loss += loss.detach().double() * len(labels)
        self.images += len(labels)

    def add_ranks(self) -> None:
        """Adds what other ranks have; all of them then have the same."""
        images = torch.tensor([self.images], device=self._counts.device)
        for sums in (self._counts, self._loss, self._by_class, images):
            if sums.numel():
                sum_over_ranks(sums)
        self.images = int(images)

    def read(self) -> Metrics:
        """The means so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self.images:
            raise ValueError("no images were added")
        top1, top5 = self._counts.tolist()
        return Metrics(
            top1=100 * top1 / self.images,
            top5=100 * top5 / self.images,
            loss=self._loss.item() / self.images,
            images=self.images,
            by_class=self._read_classes(),
        )

    def _read_classes(self) -> tuple[float | None, ...] | None:
        if not self._by_class.shape[1]:
            return None
        right, of = self._by_class.tolist()
        return tuple(100 * r / n if n else None for r, n in zip(right, of, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on."""
        return {"counts": self._counts.clone(), "loss": self._loss.clone(), "images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._counts.copy_(state["counts"])
        self._loss.copy_(state["loss"])
        self.images = state["images"]
