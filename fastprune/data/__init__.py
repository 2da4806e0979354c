"""Datasets, their splits and augmentation, and the pipelines that feed networks from them."""

from __future__ import annotations

from fastprune.data._dataset import (
    Dataset,
    Files,
    Images,
    PadCrop,
    ResizedCrop,
    Source,
    Transform,
    registry,
)
from fastprune.data._options import DataOptions, Normalization
from fastprune.data._pipeline import (
    Choice,
    DataInfo,
    Feed,
    InputPipeline,
    Kind,
    Placement,
    Splits,
    choice,
    open_pipeline,
)
from fastprune.data._splits import load, load_test

__all__ = [
    "Choice",
    "DataInfo",
    "DataOptions",
    "Dataset",
    "Feed",
    "Files",
    "Images",
    "InputPipeline",
    "Kind",
    "Normalization",
    "PadCrop",
    "Placement",
    "ResizedCrop",
    "Source",
    "Splits",
    "Transform",
    "choice",
    "load",
    "load_test",
    "open_pipeline",
    "registry",
]
