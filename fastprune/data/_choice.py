"""Which input pipeline feeds which images, and opening it."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch

from fastprune.data._dataset import Images
from fastprune.data._pipeline import Feed, InputPipeline, Kind
from fastprune.data._telling import SILENT, Teller
from fastprune.errors import DataError

__all__ = ["KINDS", "Choice", "choice", "open_pipeline"]

KINDS: tuple[Kind, ...] = ("device", "dali", "torchvision")
"""The implementations."""

# What opens a pipeline is imported where it is opened, so that an option can be named without
# loading torchvision.


class Choice(NamedTuple):
    """A kind of pipeline, and why it."""

    kind: Kind
    reason: str


def choice(feed: Feed) -> Choice:
    """The kind that ``auto`` takes for a feed."""
    if isinstance(feed.source, Images):
        return Choice("device", "images in memory lie where the network is; one kernel a batch")
    from fastprune.data import _room

    # Which pipeline there is room for must not decide how sharp a network sees its images.
    undecoded = _room.unsupported(feed) or _room.lossy(feed)
    if undecoded is None:
        what = f"training images ({_room.needed(feed)})" if feed.augment else "evaluation images"
        return Choice("device", f"{what} are decoded once and kept in {feed.cache}")
    why = f"image files are decoded every time, since {undecoded}"
    # Away from a GPU DALI is faster too, but says nothing of a JPEG that is damaged in its middle.
    if torch.cuda.is_available() and _has_dali():
        return Choice("dali", f"{why}; the GPU decodes them")
    return Choice("torchvision", f"{why}; by worker processes")


def _has_dali() -> bool:
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


def open_pipeline(feed: Feed, kind: Kind = "auto", teller: Teller = SILENT) -> InputPipeline:
    """The pipeline of that kind for a feed; `choice` says which one ``auto`` is.

    Args:
        feed: the images.
        kind: what shall feed them.
        teller: hears of long work and of bad files.

    Raises:
        DataError: that kind does not feed such images here; the message says why.
    """
    if kind == "auto":
        kind, reason = choice(feed)
        if kind != "device" and not feed.augment:
            teller.note(f"data.pipeline: {kind}: {reason}")
    if kind == "device":
        if isinstance(feed.source, Images):
            from fastprune.data import _device

            return _device.open_pipeline(feed, feed.source)
        from fastprune.data import _decoded

        return _decoded.open_decoded(feed, teller)
    if kind == "dali":
        if isinstance(feed.source, Images):
            raise DataError(
                "data.pipeline: got dali, which reads image files, but these images are in "
                "memory; use auto or device"
            )
        from fastprune.data import _dali

        return _dali.open_pipeline(feed, feed.source, teller)
    from fastprune.data import _torchvision

    return _torchvision.open_pipeline(feed, teller)
