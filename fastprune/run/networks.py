"""What stages and commands share: devices, networks from options, and their normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fastprune import models
from fastprune.config import ModelOptions
from fastprune.data import DataOptions, Normalization
from fastprune.distributed import local_rank, rank, world
from fastprune.errors import ConfigError
from fastprune.graph import ChannelGraph
from fastprune.run.directory import saved_config
from fastprune.run.paths import is_run_directory

__all__ = [
    "NormalizationChoice",
    "build_network",
    "check_outputs",
    "choose_normalization",
    "device_of",
    "set_threads",
]


class NormalizationChoice(NamedTuple):
    """A normalisation and where it is from: ``given``, ``saved``, ``weights`` or ``dataset``.

    ``normalization`` None is the dataset's own.
    """

    normalization: Normalization | None
    source: str


def device_of(name: str, field: str = "device") -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Of several ranks each has a GPU to itself, that of its number on its machine.

    Args:
        name: of the device.
        field: how messages begin.

    Raises:
        ConfigError: it is not a device of this machine, or ranks would have to share one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if world() > 1 and name == "cuda":
        name = f"cuda:{local_rank()}"
    elif world() > 1 and name.startswith("cuda"):
        raise ConfigError(
            f"{field}: got {name!r}, and {world()} ranks have a GPU each; use auto, cuda or cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # torch knows others, on which nothing here was ever run, or can be: meta has no numbers.
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{field}: expected auto, cpu, cuda or cuda:N, got {name!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"there are {count} CUDA devices" if count else "there is no CUDA device"
        if world() > 1 and count:
            raise ConfigError(
                f"{field}: rank {rank()} is number {local_rank()} of its machine, but {there}; "
                "begin one rank a GPU"
            )
        raise ConfigError(f"{field}: got {name!r}, but {there}; use auto or cpu")
    return device


def set_threads(threads: int | None) -> None:
    """Lets torch compute with so many CPU threads; None leaves it its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def build_network(
    options: ModelOptions, num_classes: int | None, *, seed: int, weights: str | None = None
) -> tuple[nn.Module, str | None]:
    """A network and, where a weights file was made to fit, one line on what was done to it.

    Args:
        options: which network; its ``weights`` are not looked at.
        num_classes: None keeps the network's own.
        seed: of the fresh weights.
        weights: a file or a published name; None for fresh weights.

    Raises:
        FastpruneError: no such network or option; as WeightsError: no such weights, or others'.
    """
    torch.manual_seed(seed)
    network = models.resolve(options.name)
    if weights is None or weights in network.published or not Path(weights).exists():
        # A name that is neither published nor a file is refused there, with the nearest.
        model = models.build(
            options.name, num_classes=num_classes, weights=weights, **options.options
        )
        return model, None
    model = network.build(num_classes, **options.options)
    return model, models.load_weights(model, weights)


def choose_normalization(
    model: ModelOptions, data: DataOptions, *, saved: Normalization | None = None
) -> NormalizationChoice:
    """What images are normalised with: given > saved > of the run that left the weights > usual
    for the weights > dataset's.

    Raises:
        ConfigError: two different ones are given.
    """
    if model.normalization and data.normalization and model.normalization != data.normalization:
        raise ConfigError(
            "data.normalization: differs from model.normalization; expected one of the two"
        )
    given = model.normalization or data.normalization
    if given:
        return NormalizationChoice(given, "given")
    if saved:
        return NormalizationChoice(saved, "saved")
    if (of_run := _of_run(model, data)) is not None:
        return of_run
    network = models.resolve(model.name).given(model.options)
    usual = network.normalization if model.weights else None
    if usual is not None:
        mean, std = usual
        return NormalizationChoice(
            Normalization.model_validate({"mean": mean, "std": std}), "weights"
        )
    return NormalizationChoice(None, "dataset")


def _of_run(model: ModelOptions, data: DataOptions) -> NormalizationChoice | None:
    """What a run trained the weights with that it left beside its configuration.

    The file itself does not say, and what is usual for published weights would be wrong.
    """
    if model.weights is None or not is_run_directory(folder := Path(model.weights).parent):
        return None
    run = saved_config(folder)
    found = choose_normalization(run.model, run.data)
    if found.normalization is None and run.data.name != data.name:
        raise ConfigError(
            f"model.normalization: {model.weights} is of a run on {run.data.name}, normalised as "
            f"that is, and the images are {data.name}; expected a normalisation"
        )
    return found


def check_outputs(graph: ChannelGraph, classes: int, name: str) -> None:
    """Raises ConfigError if the network has fewer outputs than the dataset has classes."""
    outputs = graph.program.outputs[0].shape
    if len(outputs) != 2:
        raise ConfigError(
            f"model.name: {name} gives an output of shape {list(outputs)}; expected [N, classes]"
        )
    if outputs[1] < classes:
        raise ConfigError(
            f"model.num_classes: {name} has {outputs[1]} outputs, the dataset {classes} classes"
        )
