"""``fusion.json``: which saved networks a fusion head was trained over, and opening them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune import __version__, artifact
from fastprune.data import DataOptions, Normalization
from fastprune.errors import ArtifactError
from fastprune.files import sha256_of, write_json
from fastprune.nn import FusionHead
from fastprune.run.paths import FUSION
from fastprune.training import Metrics
from fastprune.training.experts import Expert, FusedNetwork

__all__ = [
    "Fusion",
    "SavedNetwork",
    "digests_of",
    "fused_network",
    "load_fusion",
    "open_expert",
    "open_head",
    "openers",
    "save_fusion",
    "weight_of",
]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class SavedNetwork:
    """A saved network as `fastprune.load` takes it, and no other.

    Attributes:
        stem: of its two files.
        sha256: of each of them, by name; what they were when they were fused.
        features: how many an expert gives, or the head reads.
        params: parameters of what runs, an expert's without those of its own head.
        size_mb: bytes of its parameters and buffers / 10^6.
    """

    stem: Path
    sha256: Mapping[str, str]
    features: int
    params: int
    size_mb: float

    def check(self, what: str) -> None:
        """Raises ArtifactError if a file is missing or another one; it begins with ``what``."""
        for name, expected in self.sha256.items():
            file = self.stem.with_name(name)
            if not file.is_file():
                raise ArtifactError(f"{what}: {file} is missing")
            if sha256_of(file) != expected:
                raise ArtifactError(
                    f"{what}: {file} is not the file that was fused (its SHA-256 differs); put "
                    "that one back, or fuse again"
                )


@dataclass(frozen=True, slots=True)
class Fusion:
    """What ``fusion.json`` says.

    Attributes:
        folder: that it lies in.
        experts: in the order of the head's inputs.
        head: the fusion head.
        input_shape: ``(C, H, W)`` of an image.
        normalization: of the images; None is the dataset's own.
        batch_size: of the batches in which features were computed and accuracies measured.
        data: options of the images, as they were given.
        identity: digest of experts, data, options and seed.
        validation: how well the fused network does on held-out training images.
        test: how well it does on test images.
        training: epochs trained, the kept one, whether early stopping ended it.
    """

    folder: Path
    experts: tuple[SavedNetwork, ...]
    head: SavedNetwork
    input_shape: tuple[int, ...]
    normalization: Normalization | None
    batch_size: int
    data: DataOptions
    identity: str
    validation: Metrics
    test: Metrics
    training: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``fusion.json`` has it."""
        return {"folder": str(self.folder), **_to_json(self)}


def load_fusion(path: Path) -> Fusion:
    """What the ``fusion.json`` of a folder says, its files all there and the ones that it names.

    Raises:
        ArtifactError: it is missing or unreadable, or an expert or the head is missing or another
            file; the message names it.
    """
    file = path / FUSION if path.is_dir() else path
    if not file.is_file():
        raise ArtifactError(f"{file}: missing; expected what fusing writes")
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        if given["format"] > FORMAT:
            raise ArtifactError(
                f"{file}: format {given['format']} is of a newer fastprune "
                f"({given.get('fastprune')}); this one reads up to {FORMAT}"
            )
        fusion = _from_json(file.parent, given)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: not the description of fused networks: {error}") from None
    for number, expert in enumerate(fusion.experts):
        expert.check(f"{file}: expert {number}")
    fusion.head.check(f"{file}: head")
    return fusion


def open_expert(saved: SavedNetwork, shape: Sequence[int], what: str) -> Expert:
    """A fused expert; it is checked that it is the one that was fused.

    Args:
        saved: which.
        shape: ``(C, H, W)`` of an image.
        what: how a message begins.

    Raises:
        ArtifactError: it is missing, or another.
    """
    saved.check(what)
    return Expert(artifact.load(saved.stem), shape)


def fused_network(fusion: Fusion, device: str | torch.device = "cpu") -> FusedNetwork:
    """Experts and head as one network in this process, in evaluation mode.

    Raises:
        ArtifactError: an expert or the head is missing, or another.
    """
    experts = [
        open_expert(saved, fusion.input_shape, f"{fusion.folder / FUSION}: expert {number}")
        for number, saved in enumerate(fusion.experts)
    ]
    return FusedNetwork(experts, open_head(fusion)).to(device).eval()


def open_head(fusion: Fusion) -> FusionHead:
    """The fusion head, in evaluation mode.

    Raises:
        ArtifactError: it is missing, or another.
    """
    what = f"{fusion.folder / FUSION}: head"
    fusion.head.check(what)
    head = artifact.load(fusion.head.stem)
    if not isinstance(head, FusionHead):
        raise ArtifactError(f"{what}: expected a FusionHead, got a {type(head).__name__}")
    return head


def openers(fusion: Fusion) -> list[partial[Expert]]:
    """What opens each expert; to be sent to processes, whose folder may be another."""
    return [
        partial(
            open_expert,
            replace(saved, stem=saved.stem.absolute()),
            fusion.input_shape,
            f"{fusion.folder / FUSION}: expert {number}",
        )
        for number, saved in enumerate(fusion.experts)
    ]


def weight_of(model: nn.Module) -> tuple[int, float]:
    """Parameters of a network, and bytes of parameters and buffers / 10^6."""
    held = [*model.parameters(), *model.buffers()]
    return sum(p.numel() for p in model.parameters()), sum(t.nbytes for t in held) / 1e6


def digests_of(stem: Path) -> dict[str, str]:
    """SHA-256 of both files of a saved network, by name.

    Raises:
        ArtifactError: one is missing.
    """
    files = [stem.with_name(stem.name + suffix) for suffix in (".json", ".safetensors")]
    try:
        return {file.name: sha256_of(file) for file in files}
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename}: missing; expected a saved network") from None


def save_fusion(fusion: Fusion) -> None:
    """Writes ``fusion.json`` to the fusion's folder."""
    write_json(fusion.folder / FUSION, _to_json(fusion))


def _to_json(fusion: Fusion) -> dict[str, Any]:
    def saved(network: SavedNetwork) -> dict[str, Any]:
        # Relative, so that a folder that holds all of it can be moved.
        stem = os.path.relpath(network.stem.resolve(), fusion.folder.resolve())
        return {
            "file": stem,
            "sha256": dict(network.sha256),
            "features": network.features,
            "params": network.params,
            "size_mb": network.size_mb,
        }

    normalization = fusion.normalization
    return {
        "format": FORMAT,
        "fastprune": __version__,
        "experts": [saved(expert) for expert in fusion.experts],
        "head": saved(fusion.head),
        "input_shape": list(fusion.input_shape),
        "normalization": None if normalization is None else normalization.model_dump(mode="json"),
        "batch_size": fusion.batch_size,
        "data": fusion.data.model_dump(mode="json"),
        "identity": fusion.identity,
        "validation": fusion.validation.to_dict(),
        "test": fusion.test.to_dict(),
        "training": dict(fusion.training),
    }


def _from_json(folder: Path, given: Mapping[str, Any]) -> Fusion:
    def saved(network: Mapping[str, Any]) -> SavedNetwork:
        return SavedNetwork(
            stem=folder.resolve() / network["file"],
            sha256=dict(network["sha256"]),
            features=int(network["features"]),
            params=int(network["params"]),
            size_mb=float(network["size_mb"]),
        )

    normalization = given["normalization"]
    return Fusion(
        folder=folder,
        experts=tuple(saved(expert) for expert in given["experts"]),
        head=saved(given["head"]),
        input_shape=tuple(given["input_shape"]),
        normalization=normalization and Normalization.model_validate(normalization),
        batch_size=int(given["batch_size"]),
        data=DataOptions.model_validate(given["data"]),
        identity=str(given["identity"]),
        validation=Metrics(**given["validation"]),
        test=Metrics(**given["test"]),
        training=dict(given["training"]),
    )
