"""Format ``standalone``: ``model.py`` and ``model.safetensors``, which need no fastprune."""

from __future__ import annotations

import os
import pprint
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from fastprune.errors import ArtifactError, GraphError
from fastprune.files import sha256_of
from fastprune.run.export._source import Source, source_of
from fastprune.run.export._subject import Subject
from fastprune.run.export._traced import traced
from fastprune.run.export._weights import write_weights

__all__ = ["check_possible", "run", "write"]

CODE = "model.py"
WEIGHTS = "model.safetensors"


def check_possible(subject: Subject) -> None:
    """Nothing but torch is needed."""


def write(subject: Subject, folder: Path) -> None:
    """Writes ``model.safetensors`` and ``model.py``, which names the SHA-256 of the first.

    Raises:
        GraphError: torch.export cannot follow the network, or it has a step that plain torch
            cannot do.
    """
    program = traced(subject, subject.network)
    try:
        source = source_of(program, subject.network)
    except GraphError as error:
        raise GraphError(f"{subject.name}: {error}") from error
    weights = folder / WEIGHTS
    write_weights(subject, weights, source.constants)
    text = _text(subject, source, sha256_of(weights))
    compile(text, CODE, "exec")
    (folder / CODE).write_text(text, encoding="utf-8")


def run(subject: Subject, folder: Path, images: Tensor) -> Tensor:
    """Outputs of the files in a fresh process in which fastprune and torchvision do not import.

    Raises:
        ArtifactError: the process ends in an error.
    """
    folder = folder.resolve()
    given, made = folder / "images", folder / "outputs"
    given.write_bytes(safetensors_bytes({"images": images.contiguous()}))
    # Where the process starts, nothing of the user's can be imported by accident.
    environment = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    threads = str(torch.get_num_threads())
    found = subprocess.run(
        [sys.executable, "-c", _RUNNER, str(folder / CODE), str(given), str(made), threads],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
        raise ArtifactError(f"{subject.name}: the stand-alone file does not run: {last}")
    outputs: Tensor = safetensors.torch.load_file(made)["outputs"]
    given.unlink()
    made.unlink()
    return outputs


_RUNNER = """
import importlib.util, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastprune", "torchvision"):
            raise ImportError(f"{name}: not to be imported here")

sys.meta_path.insert(0, Absent())
sys.dont_write_bytecode = True
import torch
from safetensors.torch import load_file, save_file

code, images, outputs, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
spec = importlib.util.spec_from_file_location("model", code)
model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
with torch.no_grad():
    made = model.load()(load_file(images)["images"])
save_file({"outputs": made.contiguous()}, outputs)
"""


def _text(subject: Subject, source: Source, sha256: str) -> str:
    facts = subject.metadata()
    normalization: Mapping[str, Any] = facts["normalization"] or {}
    inside = subject.pixels != "normalized"
    sizes = ", ".join(["N", *map(str, subject.input_shape)])
    images = {
        "normalized": "normalised by MEAN and STD" if normalization else "as it was trained on",
        "unit": "in [0, 1]; they are normalised inside",
        "uint8": "from 0 to 255; they are normalised inside",
    }[subject.pixels]
    settings = {
        "ARCHITECTURE": facts["architecture"],
        "INPUT_SHAPE": subject.input_shape,
        "PIXELS": subject.pixels,
        "MEAN": tuple(normalization["mean"]) if normalization else None,
        "STD": tuple(normalization["std"]) if normalization else None,
        "NUM_CLASSES": facts["num_classes"],
        "CLASSES": facts["classes"] and tuple(facts["classes"]),
        "WEIGHTS": WEIGHTS,
        "SHA256": sha256,
        "CONSTANTS": tuple(source.constants),
        "TIED": dict(source.tied),
    }
    built, steps = list(source.built), list(source.steps)
    if inside:
        dtype = subject.dtype
        scale = 255 if subject.pixels == "uint8" else 1
        built += [
            f"mean, std = (torch.tensor(of) * {scale} for of in (MEAN, STD))",
            'self.register_buffer("pixel_mean", mean.view(-1, 1, 1), persistent=False)',
            'self.register_buffer("pixel_std", std.view(-1, 1, 1), persistent=False)',
        ]
        wrong, right = {
            "unit": ("not x.is_floating_point()", "pixels from 0 to 1 as floats"),
            "uint8": ("x.dtype is not torch.uint8", "pixels from 0 to 255 as torch.uint8"),
        }[subject.pixels]
        steps = [
            # Others would give other classes, and nobody would know.
            f"if {wrong}:",
            f'    raise TypeError(f"expected {right}, got {{x.dtype}}")',
            "x = (x.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std",
            *([f"x = x.to({dtype})"] if dtype is not torch.float32 else []),
            *steps,
        ]
    # In a docstring, quotes or backslashes of a user's own path would be code.
    name = re.sub(r"[^\w.:/ -]", "_", subject.name)
    lines = (f"{key} = {_literal(key, value)}" for key, value in settings.items())
    return _FILE.format(
        name=name,
        version=facts["fastprune"],
        dtype=facts["input"]["dtype"],
        sizes=sizes,
        images=images,
        gives=subject.gives,
        outputs=_outputs(subject),
        settings="\n".join(lines),
        built=_indented(built),
        steps=_indented(steps),
    )


def _outputs(subject: Subject) -> str:
    features = getattr(subject.network, "features", None)
    if subject.gives == "features" and isinstance(features, int):
        return str(features)
    return str(subject.description["num_classes"] or "classes")


def _literal(name: str, value: Any) -> str:
    """Plain data as Python, in lines of its own where it is long."""
    short = repr(value)
    if len(name) + len(short) < 95 or isinstance(value, str):
        return short
    text = pprint.pformat(value, width=95, compact=True, sort_dicts=False)
    return text[0] + "\n" + textwrap.indent(text[1:-1], " " * 4) + "\n" + text[-1]


def _indented(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), " " * 8)


_FILE = '''"""{name}: a pruned network that needs torch and safetensors alone.

    from model import load

    network = load()  # reads the weights beside this file
    {gives} = network(images)  # [{sizes}] -> [N, {outputs}], any N

Images are {dtype}, {images}.
The forward pass is that of evaluation mode.
Written by fastprune {version}; names of weights are those of the pruned network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load as tensors_of
from torch import Tensor, nn

{settings}


class Part(nn.Module):
    """A place in the tree of names; numbered parts are read as ``part[0]``."""

    def __getitem__(self, number: int) -> nn.Module | Tensor:
        return getattr(self, str(number))


def put(root: nn.Module, name: str, held: nn.Module | Tensor, persistent: bool = True) -> None:
    """Puts a layer, a parameter or a buffer at its place in the tree of names."""
    *above, last = name.split(".")
    for part in above:
        if part not in root._modules:
            root.add_module(part, Part())
        root = root._modules[part]
    if isinstance(held, nn.Module):
        root.add_module(last, held)
    elif isinstance(held, nn.Parameter):
        root.register_parameter(last, held)
    else:
        root.register_buffer(last, held, persistent=persistent)


class Network(Part):
    def __init__(self) -> None:
        super().__init__()
{built}

    def forward(self, x: Tensor) -> Tensor:
{steps}


def load(weights: str | Path | None = None, device: str | torch.device = "cpu") -> Network:
    """The network in evaluation mode.

    Args:
        weights: a file with weights of the same names; None is the one beside this file, which
            must be the one that was written with it.
        device: where the network is put.
    """
    file = Path(__file__).with_name(WEIGHTS) if weights is None else Path(weights)
    content = file.read_bytes()
    if weights is None and hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{{file}}: not the file that was written with {{Path(__file__).name}}")
    state = tensors_of(content)
    network = Network()
    with torch.no_grad():
        for name in CONSTANTS:
            network.get_buffer(name).copy_(state.pop(name))
    state.update({{name: state[kept] for name, kept in TIED.items()}})
    network.load_state_dict(state)
    return network.to(device).eval()
'''
