"""Format ``safetensors``: weights by name in one file that describes itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from fastprune import artifact
from fastprune.errors import ConfigError
from fastprune.run.export._subject import METADATA, Subject
from fastprune.run.export._weights import write_weights

__all__ = ["check_possible", "run", "write"]

FILE = "model.safetensors"


def check_possible(subject: Subject) -> None:
    """Raises ConfigError where a normalisation is wanted inside."""
    if subject.pixels != "normalized":
        raise ConfigError(
            f"--pixels {subject.pixels}: --format safetensors holds weights and no steps; leave "
            "--pixels out, the normalisation is in the metadata"
        )


def write(subject: Subject, folder: Path) -> None:
    """Writes ``model.safetensors``; tensors have the names of the network's ``state_dict``."""
    write_weights(subject, folder / FILE)


def run(subject: Subject, folder: Path, images: Tensor) -> Tensor:
    """Outputs of a network that has nothing but the weights of the file."""
    file = folder / FILE
    with safetensors.safe_open(file, framework="pt") as opened:
        json.loads(opened.metadata()[METADATA])
    network = copy.deepcopy(subject.network)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            # What the file does not hold must not be what was there before.
            tensor.zero_()
        artifact.restore(network, artifact.load_state(file))
        outputs: Tensor = network(images)
    return outputs
