"""What is exported: a saved network, what its images are like, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastprune import __version__, artifact
from fastprune.data import Normalization
from fastprune.errors import ArtifactError, ConfigError, nearest
from fastprune.graph import PruningPlan
from fastprune.run.fusion_file import load_fusion
from fastprune.training.experts import Expert

__all__ = [
    "METADATA",
    "PIXELS",
    "FromPixels",
    "Pixels",
    "Subject",
    "open_fused",
    "open_subject",
]

Pixels = Literal["normalized", "unit", "uint8"]
"""What an exported network gets: images as it was trained on, pixels from 0 to 1, or bytes."""

PIXELS: tuple[Pixels, ...] = get_args(Pixels)

METADATA = "fastprune"
"""The name under which every format keeps the description, as JSON."""

_HIGHEST = 255


class FromPixels(nn.Module):
    """A network with the normalisation of its images inside.

    It is computed in float32 as the input pipelines do, so bytes give the same bits as there.

    Args:
        network: gets normalised images.
        normalization: of pixels in [0, 1].
        pixels: ``unit`` or ``uint8``.
        dtype: of the images that the network gets.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, normalization: Normalization, pixels: Pixels, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        highest = _HIGHEST if pixels == "uint8" else 1
        for name, of in (("mean", normalization.mean), ("std", normalization.std)):
            self.register_buffer(name, (torch.tensor(of) * highest).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images ``[N, C, H, W]``, float32 in [0, 1] or uint8."""
        x = (x.to(torch.float32) - self.mean) / self.std
        return self.network(x.to(self.dtype))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to export.

    Attributes:
        stem: of the saved network.
        network: itself, on the CPU, in evaluation mode; it gets normalised images.
        input_shape: ``(C, H, W)``, or ``(features,)`` of a fusion head.
        dtype: of its weights.
        pixels: what the exported network gets.
        normalization: of pixels in [0, 1]; None where it was saved without.
        description: the JSON half of the saved network.
        gives: ``logits``, or the ``features`` of an expert whose fusion head makes the logits.
    """

    stem: Path
    network: nn.Module
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    pixels: Pixels
    normalization: Normalization | None
    description: Mapping[str, Any]
    gives: str = "logits"

    @property
    def name(self) -> str:
        """What the network is called: its architecture, or else its stem."""
        return self.description["architecture"] or self.stem.name

    @property
    def whole(self) -> nn.Module:
        """The network that gets images as the exported one does."""
        if self.pixels == "normalized":
            return self.network
        if self.normalization is None:
            raise ValueError(f"pixels: got {self.pixels}, expected normalized: no normalisation")
        return FromPixels(self.network, self.normalization, self.pixels, self.dtype).eval()

    @property
    def image_dtype(self) -> torch.dtype:
        """Element type of the images that the exported network gets."""
        return {"normalized": self.dtype, "unit": torch.float32, "uint8": torch.uint8}[self.pixels]

    def metadata(self) -> dict[str, Any]:
        """What every format says about the network, as plain data."""
        given = self.description
        return {
            "fastprune": __version__,
            "architecture": given["architecture"],
            "input": {
                "shape": ["batch", *self.input_shape],
                "dtype": str(self.image_dtype).removeprefix("torch."),
                "pixels": self.pixels,
            },
            "output": self.gives,
            "normalization": given.get("normalization"),
            "num_classes": given["num_classes"],
            "classes": given.get("classes"),
            "metrics": given.get("metrics") or {},
            "plan": PruningPlan.from_json(given["plan"]).digest,
        }

    def metadata_text(self) -> str:
        """The same as JSON in one line."""
        return json.dumps(self.metadata(), ensure_ascii=False)


def open_subject(path: Path, pixels: str = "normalized") -> Subject:
    """A saved network, to be exported.

    Args:
        path: run directory, or what `fastprune.save` was given.
        pixels: what the exported network gets, one of `PIXELS`.

    Raises:
        ConfigError: there is no such kind of pixels, or the network was saved without its
            normalisation.
        ArtifactError: there is no such saved network, or it cannot be rebuilt.
    """
    if pixels not in PIXELS:
        raise ConfigError(f"--pixels: unknown kind {pixels!r}{nearest(pixels, PIXELS)}")
    stem, description = artifact.describe(path)
    given = description.get("normalization")
    shape = tuple(int(size) for size in description["input_shape"])
    normalization = None if given is None else Normalization.model_validate(given)
    if pixels != "normalized" and (normalization is None or len(shape) != 3):
        raise ConfigError(
            f"--pixels {pixels}: {stem} was saved without a normalisation of images; leave "
            "--pixels out, and normalise them before"
        )
    if normalization is not None and len(shape) == 3 and shape[0] != len(normalization.mean):
        raise ArtifactError(
            f"{stem}: normalization: has {len(normalization.mean)} channels, images {shape[0]}"
        )
    network = artifact.load(stem)
    held = (*network.parameters(), *network.buffers())
    dtype = next((t.dtype for t in held if t.is_floating_point()), torch.float32)
    return Subject(
        stem=stem,
        network=network,
        input_shape=shape,
        dtype=dtype,
        pixels=pixels,
        normalization=normalization,
        description=description,
    )


def open_fused(path: Path, pixels: str = "normalized") -> dict[str, Subject]:
    """The parts of fused networks: experts that give features, and the head that reads them all.

    Args:
        path: folder with ``fusion.json``.
        pixels: what the exported experts get.

    Raises:
        FastpruneError: as `open_subject`, or a part is missing or another file.
    """
    fusion = load_fusion(path)
    found: dict[str, Subject] = {}
    for number, saved in enumerate(fusion.experts):
        subject = open_subject(saved.stem, pixels)
        expert = Expert(subject.network, subject.input_shape)
        found[f"expert{number}"] = replace(subject, network=expert, gives="features")
    return found | {"head": open_subject(fusion.head.stem)}
