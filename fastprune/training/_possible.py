"""What a recipe asks for that cannot be done: found before any work, told by its field."""

from __future__ import annotations

import torch

from fastprune.data import InputPipeline
from fastprune.distributed import world
from fastprune.training._capture import capture_refusal
from fastprune.training._compile import compile_refusal
from fastprune.training._device import precision_refusal
from fastprune.training.options import TrainingOptions

__all__ = ["impossible", "uncapturable"]


def impossible(
    options: TrainingOptions,
    device: torch.device,
    *,
    train: InputPipeline | None = None,
    validated: bool,
    taught: bool,
) -> list[str]:
    """What of a recipe cannot be followed, ``field: why; what would be right`` each.

    Args:
        options: the recipe.
        device: where to compute.
        train: the training images; None before they are opened.
        validated: whether there are validation images.
        taught: whether there is an unpruned network to learn from.
    """
    found = []
    if (why := precision_refusal(options.precision, device)) is not None:
        found.append(f"precision: {why}")
    if options.capture is True and (why := uncapturable(options, device, train)) is not None:
        found.append(f"capture: {why}; use auto or false")
    if options.compile and world() > 1:
        found.append(f"compile: is for one process, and these are {world()} ranks; use false")
    elif options.compile and (why := compile_refusal()) is not None:
        found.append(f"compile: {why}; use false")
    if train is not None and (why := _too_few(options, train)) is not None:
        found.append(why)
    if options.focus is not None and train is not None:
        last = train.highest_label
        if (asked := max(options.focus.classes)) > last:
            found.append(f"focus.classes: got {asked}; expected labels of 0 to {last}")
    if options.distill is not None and not taught:
        found.append("distill: needs the unpruned network to learn from")
    looks = {"early_stop": options.early_stop is not None, "keep": options.keep == "best"}
    found += [
        f"{field}: looks at validation images, but data.validation is 0; set it above 0"
        for field, wants in looks.items()
        if wants and not validated
    ]
    return found


def _too_few(options: TrainingOptions, train: InputPipeline) -> str | None:
    """Why some rank would have a step of one image, or none, or None: batch norm refuses these."""
    needed, size = 2 * world(), train.batch_size * (world() if options.scale_batch else 1)
    if world() == 1 or min(size, train.images) >= needed:
        return None
    asked = f"two images a step for each of {world()} ranks"
    if train.images < needed:
        return f"epochs: {train.images} training images are too few for {asked}; use fewer ranks"
    least = 2 if options.scale_batch else needed
    return (
        f"scale_batch: data.batch_size is {train.batch_size}, too few for {asked}; expected "
        f"{least} or more, or fewer ranks"
    )


def uncapturable(
    options: TrainingOptions, device: torch.device, train: InputPipeline | None
) -> str | None:
    """Why steps of a recipe cannot be captured, or None: what can be said before the first."""
    if options.capture is False:
        return "capture: false"
    if options.compile:
        return "compile: true"
    if (anywhere := capture_refusal(device, train)) is not None:
        return anywhere
    if world() > 1:
        return f"{world()} ranks exchange gradients in every step"
    if options.accumulate > 1:
        return f"accumulate: a step is {options.accumulate} batches"
    if options.precision == "fp16":
        return "precision: fp16 scales its losses by what the host reads"
    return None
