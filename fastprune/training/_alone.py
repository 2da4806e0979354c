"""How many images a batch has, and training batches that bad files left with one."""

from __future__ import annotations

from typing import Protocol

__all__ = ["images_between", "left_alone"]


class _Divided(Protocol):
    """Images in batches: a pipeline's, or the portion of a rank."""

    @property
    def images(self) -> int: ...

    @property
    def batch_size(self) -> int: ...


def images_between(pipeline: _Divided, first: int, end: int) -> int:
    """Images of the batches from ``first`` to before ``end``, if all can be read."""
    size = pipeline.batch_size
    return min(end * size, pipeline.images) - first * size


def left_alone(pipeline: _Divided, batch: int, images: int) -> bool:
    """Whether one image alone could be read of a batch that has several.

    Such a batch is left out of training, as a left-over of one is: it has no variance, and batch
    norm in training mode refuses it.
    """
    return images == 1 < images_between(pipeline, batch, batch + 1)
