"""The options of a dataset and of how its images reach a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator

from fastprune.options import Options, expecting

__all__ = ["DataOptions", "Normalization"]

Held = Annotated[
    Annotated[StrictInt, Field(ge=0)]
    | Annotated[StrictFloat, Field(ge=0, lt=1, allow_inf_nan=False)],
    expecting("a fraction below 1 or a count, or 0 for none"),
]
Augment = Annotated[StrictBool | Literal["standard"], expecting("true, false or standard")]
Cache = Annotated[
    Path | Literal[False] | None, expecting("a folder, false for none or null for the usual one")
]


class Normalization(Options):
    """What is taken from a pixel on the scale of 0 to 1, and what the rest is divided by."""

    mean: tuple[float, float, float] = Field(description="Of red, green and blue.")
    std: tuple[float, float, float] = Field(description="Of red, green and blue; above 0.")

    @field_validator("std")
    @classmethod
    def _positive(cls, given: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(value > 0 for value in given):
            raise ValueError("expected three numbers above 0")
        return given


class DataOptions(Options):
    """Which images, split and altered how."""

    name: str = Field(
        default="digits",
        min_length=1,
        description="Dataset: digits, cifar10, cifar100, imagefolder or a plug-in's.",
    )
    root: Path = Field(
        default=Path("data"), description="Folder the dataset lies in; digits needs none."
    )
    download: bool = Field(
        default=False, description="Fetch the dataset into root if it is not there."
    )
    batch_size: int = Field(default=128, ge=1, description="Images of a training batch.")
    eval_batch_size: int = Field(default=256, ge=1, description="Images of an evaluation batch.")
    workers: int | None = Field(
        default=None,
        ge=0,
        description="Processes that decode image files; by default one a core, at most 8. "
        "Datasets held in memory need none.",
    )
    validation: Held = Field(
        default=0.1,
        description="Training images held out for validation, by class and seed: a fraction "
        "below 1, or a count; 0 for no validation set.",
    )
    augment: Augment = Field(
        default="standard",
        description="Alter training images at random. Standard: crops out of 4 pixels of padding "
        "and flips (CIFAR), shifts up to 2 pixels (digits), random resized crops and flips (image "
        "folders).",
    )
    normalization: Normalization | None = Field(
        default=None,
        description="Mean and standard deviation the images are normalised with; by default the "
        "dataset's own.",
    )
    image_size: int | None = Field(
        default=None,
        ge=8,
        description="Height and width of the images of an image folder; by default 224.",
    )
    train_limit: int | None = Field(
        default=None,
        ge=1,
        description="Train on this many images, of all classes alike; for shortened runs.",
    )
    test_limit: int | None = Field(
        default=None,
        ge=1,
        description="Test on this many images, of all classes alike and the same for every seed.",
    )
    max_bad_images: int = Field(
        default=0,
        ge=0,
        description="Image files that may be unreadable, in each of the training, validation and "
        "test images; they are named and left out of their batches.",
    )
    cache: Cache = Field(
        default=None,
        description="Folder where decoded images are kept for the next time; by default "
        "fastprune in the user's cache folder ($XDG_CACHE_HOME or ~/.cache); false keeps none.",
    )
    cache_limit: float = Field(
        default=8.0,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        description="Gigabytes that decoded images may take in that folder.",
    )
    pipeline: Literal["auto", "device", "dali", "torchvision"] = Field(
        default="auto",
        description="What loads the images; auto takes the best one at hand. Device: images held "
        "where the network is, those of image folders decoded once. Dali: NVIDIA DALI, an extra. "
        "Torchvision: worker processes.",
    )

    @field_validator("root", "cache")
    @classmethod
    def _somewhere(cls, given: Path | Literal[False] | None) -> Path | Literal[False] | None:
        if isinstance(given, Path):
            try:
                given.expanduser()
            except RuntimeError:
                raise ValueError(
                    f"expected a folder; {given.parts[0]} is nobody's home folder; got {given}"
                ) from None
        return given
