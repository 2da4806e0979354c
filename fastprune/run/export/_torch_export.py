"""Format ``torch-export``: a ``.pt2`` file that torch alone loads and runs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from fastprune.errors import ArtifactError
from fastprune.run.export._subject import METADATA, Subject
from fastprune.run.export._traced import FAILURES, quietly, reason_of, traced

__all__ = ["check_possible", "run", "write"]

FILE = "model.pt2"
EXTRA = f"{METADATA}.json"


def check_possible(subject: Subject) -> None:
    """Nothing but torch is needed."""


def write(subject: Subject, folder: Path) -> None:
    """Writes ``model.pt2`` with the description as its extra file ``fastprune.json``.

    Raises:
        GraphError: torch.export cannot follow the network.
        ArtifactError: what it recorded cannot be saved.
    """
    program = traced(subject, subject.whole)
    try:
        with quietly():
            torch.export.save(program, folder / FILE, extra_files={EXTRA: subject.metadata_text()})
    except FAILURES as error:
        raise ArtifactError(
            f"{subject.name}: torch.export cannot save this network: {reason_of(error)}"
        ) from error


def run(subject: Subject, folder: Path, images: Tensor) -> Tensor:
    """Outputs of the program in the file."""
    extra = {EXTRA: ""}
    with quietly():
        program = torch.export.load(folder / FILE, extra_files=extra)
    json.loads(extra[EXTRA])
    with torch.no_grad():
        outputs: Tensor = program.module()(images)
    return outputs
