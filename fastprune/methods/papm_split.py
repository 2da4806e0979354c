"""A small network for each of several devices, specialised on a group of the classes, and a head
that joins what they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt, field_validator

from fastprune.methods import PruneOptions, registry
from fastprune.methods._grouping import Similarity
from fastprune.methods.papm import JoinedOptions, PapmOptions
from fastprune.options import Options, expecting
from fastprune.training.fusion import FusionOptions

__all__ = ["InferenceOptions", "PapmSplitOptions", "papm_split"]

Devices = Annotated[StrictInt, Field(ge=2)]


class InferenceOptions(Options):
    """How split inference is measured.

    Attributes:
        devices: where each expert runs, or one for all: ``cpu``, ``cuda:1``; None: the run's.
        threads: CPU threads of each expert's process.
        batches: images at a time; None: 1, and as many as accuracy is measured with.
        repeats: turns that are measured.
    """

    devices: tuple[str, ...] | None = None
    threads: int = Field(default=1, ge=1, le=1024)
    batches: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(default=None, min_length=1)
    repeats: int = Field(default=30, ge=2)


class PapmSplitOptions(JoinedOptions):
    """Options of PAPM on several devices; those of the score and the limits are each expert's.

    Attributes:
        devices: how many, or several such numbers: groups, experts and a head for each of them.
        similarity: by which classes are grouped.
        head: how the fusion head is trained.
        inference: how split inference is measured.
    """

    ensemble: ClassVar[bool] = True
    name: Literal["papm_split"] = "papm_split"
    devices: Annotated[
        Devices | Annotated[tuple[Devices, ...], Field(min_length=1)],
        expecting("a number of devices from 2 on, or several such numbers"),
    ] = 2
    similarity: Similarity = "cosine"
    head: FusionOptions = FusionOptions()
    inference: InferenceOptions = InferenceOptions()

    @field_validator("devices")
    @classmethod
    def _once(cls, given: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(given, tuple) and len(set(given)) < len(given):
            raise ValueError(f"expected different numbers of devices, got {list(given)}")
        return given

    @property
    def needs_validation(self) -> bool:
        return True

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of devices, ascending."""
        return (self.devices,) if isinstance(self.devices, int) else tuple(sorted(self.devices))

    def problems(self, prune: PruneOptions) -> list[str]:
        found = super().problems(prune)
        places = self.inference.devices
        if places is not None and any(len(places) not in (1, count) for count in self.counts):
            found.append(
                "method.inference.devices: expected one for all experts, or as many as "
                f"method.devices, got {len(places)}"
            )
        return found


@registry.register("papm_split", options=PapmSplitOptions)
def papm_split(options: PapmSplitOptions, classes: Sequence[int]) -> PapmOptions:
    """Prune a network by `papm` for each of several groups of classes, and fuse them."""
    fields = set(JoinedOptions.model_fields) - {"name"}
    shared = {name: getattr(options, name) for name in fields}
    return PapmOptions(classes=tuple(classes), **shared)
