"""The weights of a network as a safetensors file that says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from fastprune.run.export._subject import METADATA, Subject

__all__ = ["tied_names", "write_weights"]


def tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that an earlier name has too -> that name.

    Args:
        state: the network's own tensors, ``state_dict(keep_vars=True)``.
    """
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: first[id(tensor)] for name, tensor in state.items() if first[id(tensor)] != name}


def write_weights(subject: Subject, file: Path, more: Mapping[str, Tensor] | None = None) -> None:
    """Writes the network's tensors under their names, tied ones once, and its description.

    Args:
        subject: whose.
        file: where to.
        more: tensors that no ``state_dict`` has.
    """
    state = subject.network.state_dict(keep_vars=True)
    tied = tied_names(state)
    kept = {name: tensor for name, tensor in state.items() if name not in tied} | dict(more or {})
    metadata = {"format": "pt", METADATA: subject.metadata_text()}
    if tied:
        metadata["tied"] = json.dumps(tied, sort_keys=True)
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in kept.items()}
    file.write_bytes(safetensors_bytes(plain, metadata))
