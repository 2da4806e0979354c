"""How many images a batch has, and training batches that bad files left with one."""

from __future__ import annotations

from fastprune.data import InputPipeline

__all__ = ["images_between", "left_alone"]


def images_between(pipeline: InputPipeline, first: int, end: int) -> int:
    """Images of the batches from ``first`` to before ``end``, if all can be read."""
    size = pipeline.batch_size
    return min(end * size, pipeline.images) - first * size


def left_alone(pipeline: InputPipeline, batch: int, images: int) -> bool:
    """Whether one image alone could be read of a batch that has several.

    Such a batch is left out of training, as a left-over of one is: it has no variance, and batch
    norm in training mode refuses it.
    """
    return images == 1 < images_between(pipeline, batch, batch + 1)
