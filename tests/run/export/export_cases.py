"""A process without fastprune, and small saved networks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fastprune as fp
from fastprune import models
from fastprune.testing.surgery import fill, random_plan

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CLASSES = tuple(f"kind {number}" for number in range(10))

_SERVER = """
import importlib.util, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastprune", "torchvision"):
            raise ImportError(f"{name}: not to be imported here")

sys.meta_path.insert(0, Absent())
sys.dont_write_bytecode = True
try:
    import fastprune
except ImportError:
    pass
else:
    raise SystemExit("fastprune is there")
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for number, line in enumerate(sys.stdin):
    folder, dtype = line.split()
    spec = importlib.util.spec_from_file_location(f"model{number}", f"{folder}/model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    network = model.load().to(getattr(torch, dtype))
    made = {f"state/{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for name, images in load_file(f"{folder}/images").items():
            made[f"outputs/{name}"] = network(images).clone()
    save_file(made, f"{folder}/made")
    print("done", flush=True)
"""


class BareProcess:
    """Runs stand-alone networks where fastprune does not import."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, folder: Path, batches: dict[str, Tensor], dtype: str = "float32"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Its state_dict, and its outputs for each batch."""
        save_file(batches, folder / "images")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(folder, dtype, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"
        made = load_file(folder / "made")
        return tuple(  # type: ignore[return-value]
            {name[len(part) :]: t for name, t in made.items() if name.startswith(part)}
            for part in ("state/", "outputs/")
        )


def save_pruned(stem: Path, name: str, *, select: Any = (), **options: Any) -> nn.Module:
    """Saves a network of random weights, cut at random, and gives it."""
    network = models.resolve(name).given(options)
    model = fill(network.build(10, **options)).eval()
    shape = network.input_shape or (3, 32, 32)
    graph = fp.trace(model, torch.zeros(1, *shape), select=select)
    plan = random_plan(graph, 0)
    small = fp.apply_plan(model, graph, plan, allow_unchanged=True)
    fp.save(
        stem,
        small,
        plan=plan,
        architecture=name,
        options=options,
        num_classes=10,
        input_shape=shape,
        normalization=(MEAN, STD),
        classes=CLASSES,
    )
    return small
