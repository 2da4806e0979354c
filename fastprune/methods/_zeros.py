"""What methods that look at activations have in common: their images, and which channels had any
zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from pydantic import Field, StrictInt, field_validator
from torch import Tensor

from fastprune.criteria import ZeroCounts, check_relus, zero_counts
from fastprune.data import Part, Placement
from fastprune.distributed import gathered, rank, world
from fastprune.errors import FastpruneError
from fastprune.graph import ChannelGraph
from fastprune.methods import MethodContext, MethodOptions, PruneOptions
from fastprune.models import Network
from fastprune.training import EarlyStopOptions, FocusOptions, TrainingOptions

__all__ = ["ActivationOptions", "FocusedOptions", "counted", "facts", "recipe_of"]


class ActivationOptions(MethodOptions):
    """Options of methods that look at activations.

    Attributes:
        batches: training batches to look at; None: all of an epoch.
    """

    batches: int | None = Field(default=None, ge=1)

    def check(self, graph: ChannelGraph, prune: PruneOptions, network: Network | None) -> None:
        check_relus(graph)


class FocusedOptions(ActivationOptions):
    """Options of methods that can make a network for some of the classes.

    Attributes:
        classes: labels of the classes the network is for: their training images alone are looked
            at, and fine-tuning is for them. None: all.
    """

    classes: tuple[StrictInt, ...] | None = None

    @field_validator("classes")
    @classmethod
    def _different(cls, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if given is not None and (not given or min(given) < 0 or len(set(given)) < len(given)):
            raise ValueError(f"expected different labels of at least 0, got {list(given)}")
        return None if given is None else tuple(sorted(given))

    @property
    def focus(self) -> tuple[int, ...]:
        return self.classes or ()

    @property
    def needs_validation(self) -> bool:
        return self.classes is not None


def counted(context: MethodContext, options: FocusedOptions) -> ZeroCounts:
    """Zeros over the images that the options name.

    Raises:
        FastpruneError: a class that the data does not have, or of which no image is there.
    """
    known = context.splits.info.num_classes
    unknown = [label for label in options.classes or () if label >= known]
    if unknown:
        raise FastpruneError(
            f"method.classes: expected labels of 0 to {known - 1}, got {unknown[0]}"
        )
    # Ranks look at every so many batches, whole ones, which one process would see alike.
    images = _images(context, options)
    begun = next(images, None)
    mine = None
    if begun is not None:
        mine = zero_counts(context.model, context.graph, chain([begun], images))
    found = [counts for counts in gathered(mine) if counts is not None]
    if not found:
        raise FastpruneError("zeros: there are no training images; expected at least one")
    return found[0].merged(*found[1:])


def recipe_of(context: MethodContext, options: FocusedOptions) -> TrainingOptions | None:
    """Fine-tuning for the method's classes; None where it has none, or there is no fine-tuning.

    Of the run's own recipe stays what it says of focus and early stopping. The epoch is kept that
    is best on held-out images of these classes.
    """
    given = context.finetune
    if options.classes is None or given is None:
        return None
    return given.model_copy(
        update={
            "focus": given.focus or FocusOptions(classes=options.classes),
            "keep": "best",
            "early_stop": given.early_stop or EarlyStopOptions(),
        }
    )


def _images(context: MethodContext, options: FocusedOptions) -> Iterator[tuple[Tensor, Tensor]]:
    placement = Placement(torch.device(context.device))
    part = Part(rank(), world(), dealt=True)
    batches = None if options.batches is None else len(range(rank(), options.batches, world()))
    given = islice(context.splits.train.epoch(0, placement=placement, part=part), batches)
    if options.classes is None:
        yield from given
        return
    wanted = torch.tensor(options.classes, device=context.device)
    found = False
    for x, y in given:
        chosen = torch.isin(y, wanted)
        if chosen.any():
            found = True
            yield x[chosen], y[chosen]
    if not any(gathered(found)):
        raise FastpruneError(
            f"method.classes: none of the training images looked at is of {list(options.classes)};"
            " expected more method.batches, or other classes"
        )


def facts(context: MethodContext, options: FocusedOptions, counts: ZeroCounts) -> dict[str, Any]:
    """What a report says of the zeros."""
    fractions = torch.cat(list(counts.apoz(context.graph).values()))
    return {
        "classes": None if options.classes is None else list(options.classes),
        "images": counts.images,
        "lowest_apoz": float(fractions.min()),
        "mean_apoz": float(fractions.mean()),
        "highest_apoz": float(fractions.max()),
    }
