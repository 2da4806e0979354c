"""Datasets, their splits and augmentation, and the pipelines that feed networks from them."""

from __future__ import annotations

from fastprune.data._batches import WHOLE, ClassDraw, Part, Portion
from fastprune.data._choice import KINDS, Choice, choice, open_pipeline
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
from fastprune.data._listing import Listing
from fastprune.data._options import DataOptions, Normalization
from fastprune.data._pipeline import (
    DataInfo,
    Feed,
    InputPipeline,
    Kind,
    Placement,
    Splits,
)
from fastprune.data._speed import PartSpeeds, Speed, measure_pipelines
from fastprune.data._splits import TrainingImages, load, load_test, load_training

__all__ = [
    "KINDS",
    "WHOLE",
    "Choice",
    "ClassDraw",
    "DataInfo",
    "DataOptions",
    "Dataset",
    "Feed",
    "Files",
    "Images",
    "InputPipeline",
    "Kind",
    "Listing",
    "Normalization",
    "PadCrop",
    "Part",
    "PartSpeeds",
    "Placement",
    "Portion",
    "ResizedCrop",
    "Source",
    "Speed",
    "Splits",
    "TrainingImages",
    "Transform",
    "choice",
    "load",
    "load_test",
    "load_training",
    "measure_pipelines",
    "open_pipeline",
    "registry",
]
