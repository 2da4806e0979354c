"""Format ``onnx``, by torch's exporter of ``torch.export`` programs.

It is there in every torch from 2.8 on and needs onnxscript; the older one, of TorchScript, is no
longer developed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprune.errors import ArtifactError, ConfigError
from fastprune.run.export._packages import load_packages
from fastprune.run.export._subject import METADATA, Subject
from fastprune.run.export._traced import FAILURES, quietly, reason_of, traced

__all__ = ["check_possible", "run", "write"]

FILE = "model.onnx"
WEIGHTS = "model.onnx.data"
INPUT = "images"
BATCH = "batch"

_MOST = 1_900_000_000
"""Bytes of weights that fit into a protobuf beside the rest; it ends at 2 GiB."""


def check_possible(subject: Subject) -> None:
    """Raises FastpruneError if a package is missing, or onnxruntime lacks the weights' dtype."""
    load_packages("onnx", "onnxscript", "onnxruntime")
    if subject.dtype not in (torch.float32, torch.float64, torch.float16):
        raise ConfigError(
            f"--format onnx: {subject.stem} has weights in {subject.dtype}, with which "
            "onnxruntime does not compute on a CPU; save it in float32 or float16"
        )


def write(subject: Subject, folder: Path) -> None:
    """Writes ``model.onnx``, from 1.9 GB of weights on with ``model.onnx.data`` beside it.

    Raises:
        GraphError: torch.export cannot follow the network.
        ArtifactError: it has a step that ONNX does not.
    """
    (onnx,) = load_packages("onnx")
    program = traced(subject, subject.whole)
    held = (*subject.network.parameters(), *subject.network.buffers())
    beside = sum(tensor.nbytes for tensor in held) > _MOST
    try:
        with quietly():
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                external_data=beside,
                input_names=[INPUT],
                output_names=[subject.gives],
            )
            made.save(folder / FILE, external_data=beside)
    except FAILURES as error:
        raise ArtifactError(
            f"{subject.name}: cannot be written as ONNX: {reason_of(error)}"
        ) from error
    proto = onnx.load(folder / FILE, load_external_data=False)
    _name_batch(proto)
    for key, value in _properties(subject).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    proto.producer_name, proto.producer_version = METADATA, subject.metadata()[METADATA]
    onnx.save(proto, folder / FILE)


def _properties(subject: Subject) -> dict[str, str]:
    """The description as one entry, and what readers of ONNX look for as entries of their own."""
    found = {METADATA: subject.metadata_text()}
    facts = subject.metadata()
    for key in ("classes", "normalization", "input"):
        if facts[key] is not None:
            found[key] = json.dumps(facts[key], ensure_ascii=False)
    return found


def _name_batch(proto: Any) -> None:
    """Names the number of images; torch gives it a number of its own, ``s77``."""
    old = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(old)}\b", BATCH, dim.dim_param)


def run(subject: Subject, folder: Path, images: Tensor) -> Tensor:
    """Outputs of the file in onnxruntime, on the CPU.

    Raises:
        ArtifactError: onnxruntime cannot run it.
    """
    (onnxruntime,) = load_packages("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            folder / FILE, options, providers=["CPUExecutionProvider"]
        )
        (outputs,) = session.run([subject.gives], {INPUT: images.numpy()})
    except _errors(onnxruntime) as error:
        raise ArtifactError(
            f"{subject.name}: onnxruntime does not run this network: {reason_of(error)}"
        ) from error
    return torch.from_numpy(outputs)


def _errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its kinds of errors have no common one of their own."""
    kinds = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return tuple(k for k in kinds if isinstance(k, type) and issubclass(k, Exception))
