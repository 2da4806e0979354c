"""Fusing saved networks: features of each, and a head that is trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastprune import artifact, data
from fastprune.data import DataOptions, Normalization
from fastprune.errors import ArtifactError, ConfigError, GraphError
from fastprune.files import digest_of
from fastprune.graph import PruningPlan
from fastprune.nn import FusionHead
from fastprune.nn.fusion_head import FEWEST_FEATURES
from fastprune.run.fusion_file import (
    Fusion,
    SavedNetwork,
    digests_of,
    load_fusion,
    save_fusion,
    weight_of,
)
from fastprune.run.networks import device_of
from fastprune.run.paths import FUSION_HEAD, FUSION_WORK, make_folder
from fastprune.training import Progress
from fastprune.training.experts import Expert
from fastprune.training.fusion import FusionOptions, cached_features, fit_head, measure_head
from fastprune.training.progress import SilentProgress

__all__ = ["fuse", "fused_data"]

_ARCHITECTURE = "fastprune.nn:FusionHead"

_HARMLESS = {
    *("root", "download", "workers", "cache", "cache_limit"),
    *("augment", "batch_size"),
}
"""Options of images that features do not follow from: where they lie, and training batches."""


def fuse(
    experts: Sequence[Path],
    out: Path,
    *,
    options: FusionOptions | None = None,
    data_options: DataOptions,
    seed: int = 0,
    device: str = "auto",
    work: Path | None = None,
    progress: Progress | None = None,
) -> Fusion:
    """Trains a fusion head over saved networks and writes it to a folder, ``fusion.json`` last.

    Stopped at any moment and called again with the same arguments, it goes on where it was, and on
    a CPU ends in the same bytes; where it had ended, it gives what it found then. Training and
    validation images are seen as for evaluation; the head never sees test images, which are
    looked at once, when it is done.

    Args:
        experts: saved networks or run directories, in the order of the head's inputs.
        out: folder for ``fusion.json`` and the head's two files; made if need be.
        options: how the head is trained.
        data_options: the images; those the experts were trained on.
        seed: of the split of the images, of the head's weights, order and dropout.
        device: where to compute: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        work: folder for the checkpoints of the head's training; by default in ``out``.
        progress: shows how far it is.

    Raises:
        ArtifactError: an expert cannot be loaded, or expects other images than the first.
        GraphError: an expert ends with no Linear layer.
        ConfigError: there are no experts or no validation images.
        CheckpointError: the folder holds another head's training.
    """
    told, where = progress or SilentProgress(), device_of(device)
    options = options or FusionOptions()
    if not experts:
        raise ConfigError("experts: expected one saved network or more, got none")
    if not data_options.validation:
        raise ConfigError("data.validation: expected images for choosing the head's epoch, got 0")
    described = [artifact.describe(path) for path in experts]
    shape, given, classes = _agreed(described)
    images = _data(data_options, given)
    identity = digest_of(
        {
            "experts": [digests_of(stem) for stem, _ in described],
            "data": images.model_dump(mode="json", exclude=_HARMLESS),
            "options": options.model_dump(mode="json", exclude={"checkpoint_every"}),
            "seed": seed,
        }
    )
    if (done := _stored(out, identity)) is not None:
        return done
    loaded = [_expert(stem, shape).to(where) for stem, _ in described]
    total = sum(expert.features for expert in loaded)
    if total < FEWEST_FEATURES:
        raise ConfigError(
            f"experts: expected {FEWEST_FEATURES} features or more of all together, got {total}; "
            "leave them more channels before their last layers"
        )
    make_folder(out)
    splits, training = data.load(images, seed), data.load_training(images, seed)
    parts = {**splits.parts, "train": training.pipeline}
    try:
        seen = {
            part: cached_features(
                loaded, pipeline, device=where, progress=told, name=f"features, {part}"
            )
            for part, pipeline in parts.items()
        }
        info = splits.info
    finally:
        splits.close()
        training.pipeline.close()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        head = FusionHead(total, info.num_classes).to(where)
    result = fit_head(
        head,
        seen["train"],
        seen["validation"],
        options,
        directory=work or out / FUSION_WORK,
        seed=seed,
        source=identity,
        progress=told,
    )
    validation = measure_head(head, seen["validation"])
    test = measure_head(head, seen["test"])
    artifact.save(
        out / FUSION_HEAD,
        head.eval(),
        plan=PruningPlan({}),
        architecture=_ARCHITECTURE,
        options={"features": total},
        num_classes=info.num_classes,
        input_shape=(total,),
        classes=classes or info.classes,
        metrics={"validation": validation.to_dict(), "test": test.to_dict()},
    )
    fusion = Fusion(
        folder=out,
        experts=tuple(
            SavedNetwork(stem, digests_of(stem), expert.features, *weight_of(expert))
            for (stem, _), expert in zip(described, loaded, strict=True)
        ),
        head=SavedNetwork(
            out / FUSION_HEAD, digests_of(out / FUSION_HEAD), total, *weight_of(head)
        ),
        input_shape=shape,
        normalization=given,
        batch_size=images.eval_batch_size,
        data=data_options,
        identity=identity,
        validation=validation,
        test=test,
        training={
            "epochs": result.epochs,
            "kept_epoch": result.kept_epoch,
            "stopped_early": result.stopped_early,
        },
    )
    save_fusion(fusion)
    return fusion


def fused_data(fusion: Fusion, options: DataOptions | None = None) -> DataOptions:
    """The options of the images as the fused network expects them.

    Args:
        fusion: the fused network.
        options: of the images; by default of those it was fused on.

    Raises:
        ConfigError: another normalisation is given.
    """
    return _data(options or fusion.data, fusion.normalization).model_copy(
        update={"eval_batch_size": fusion.batch_size}
    )


def _stored(out: Path, identity: str) -> Fusion | None:
    """What was fused there of the same experts in the same way, if all of it still stands."""
    try:
        found = load_fusion(out)
    except ArtifactError:
        # Missing, or of experts that are not there any more: what is asked for is made.
        return None
    return found if found.identity == identity else None


def _expert(stem: Path, shape: tuple[int, ...]) -> Expert:
    model = artifact.load(stem)
    try:
        return Expert(model, shape)
    except GraphError as error:
        raise GraphError(f"{stem}: {error}") from None


def _data(options: DataOptions, expected: Normalization | None) -> DataOptions:
    if expected is None or options.normalization == expected:
        return options
    if options.normalization is not None:
        raise ConfigError(
            "data.normalization: differs from that of the experts; leave it out, and theirs is "
            "taken"
        )
    return options.model_copy(update={"normalization": expected})


def _agreed(
    described: Sequence[tuple[Path, Mapping[str, Any]]],
) -> tuple[tuple[int, ...], Normalization | None, Sequence[str] | None]:
    """Input shape, normalisation and classes, in which all saved networks have to agree."""
    first, facts = described[0]
    for stem, other in described[1:]:
        for key in ("input_shape", "normalization", "classes"):
            if other.get(key) != facts.get(key):
                raise ArtifactError(
                    f"{stem}: {key}: got {other.get(key)}, but {first} has {facts.get(key)}; "
                    "experts have to be of the same images"
                )
    given = facts.get("normalization")
    normalization = None if given is None else Normalization.model_validate(given)
    return tuple(facts["input_shape"]), normalization, facts.get("classes")
