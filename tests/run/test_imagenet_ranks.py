"""Configurations for ImageNet, cut short, under torchrun on two ranks, with real JPEGs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastprune as fp

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = [
    "data.image_size=64",
    "data.batch_size=4",
    "data.eval_batch_size=4",
    "data.validation=4",
    "data.workers=0",
    "data.cache=false",
    "device=cpu",
    "threads=1",
    "latency.repeats=0",
    "finetune.epochs=1",
    "finetune.milestones=[0.5]",
]
META = [
    "method.pruningnet.epochs=1",
    "method.population=4",
    "method.select_num=2",
    "method.mutation_num=2",
    "method.crossover_num=1",
    "method.iterations=2",
    "method.batches=2",
]
OWN = {
    "abc_resnet50_imagenet": [
        "model.weights=null",
        "baseline.epochs=1",
        "method.food_number=2",
        "method.max_cycle=1",
        "method.calfitness_epoch=1",
        "finetune.warmup_epochs=0",
    ],
    # Without momentum, which is as large as the weights, and a checkpoint, in one step.
    "metapruning_resnet50_imagenet": [
        *META,
        "data.batch_size=12",
        "method.pruningnet.momentum=0",
        "method.pruningnet.checkpoint_every=1e6",
    ],
    # The same stages with a smaller pruningnet.
    "metapruning_mobilenet_v1_imagenet": META,
}
_ROOM = 16 * 2**30
"""Bytes: a pruningnet of 776 M parameters and its gradients on two ranks, 14 GiB measured."""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of JPEGs: photographs where there are some, else stripes that lie or stand."""
    given = os.environ.get("FASTPRUNE_DATA")
    real = Path(given) / "hymenoptera-256" if given else None
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for lies, name in enumerate(("ants", "bees")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            if real is not None and real.is_dir():
                for file in sorted((real / part / name).glob("*.jpg"))[:count]:
                    shutil.copy(file, folder)
                continue
            for number in range(count):
                height, width = (int(n) for n in generator.integers(70, 100, 2))
                across = np.arange(height)[:, None] if lies else np.arange(width)[None]
                pixels = np.broadcast_to(across // 4 % 2 * 200, (height, width))[..., None]
                pixels = pixels + generator.integers(0, 56, (height, width, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.JPEG")
    return tmp_path / "images"


def _available() -> int:
    """Bytes of memory that programs can be given."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(found) * 1024


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("abc_resnet50_imagenet", "torchvision"),
        ("metapruning_mobilenet_v1_imagenet", "dali"),
        # `make large`: alone, and with most of a machine's memory.
        pytest.param("abc_resnet50_imagenet", "dali", marks=pytest.mark.large),
        pytest.param("metapruning_resnet50_imagenet", "torchvision", marks=pytest.mark.large),
        pytest.param("metapruning_resnet50_imagenet", "dali", marks=pytest.mark.large),
    ],
)
def test_all_stages_run_under_torchrun(
    name: str, pipeline: str, photographs: Path, tmp_path: Path
) -> None:
    if pipeline == "dali" and not (
        importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    ):
        pytest.skip("DALI: pip install 'fastprune[dali]'")
    if name == "metapruning_resnet50_imagenet" and (free := _available()) < _ROOM:
        pytest.skip(
            f"its pruningnet needs {_ROOM / 2**30:.0f} GiB for two ranks, and "
            f"{free / 2**30:.1f} are free"
        )
    folder = tmp_path / "run"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # Which is the same.
    itself, gpus = pipeline == "torchvision", ("--gpus", "2")
    command = [
        *(sys.executable, *(() if itself else torchrun), "-m", "fastprune", "run"),
        *(str(CONFIGS / f"{name}.yaml"), f"data.root={photographs}", *SHORT, *OWN[name]),
        *(f"data.pipeline={pipeline}", "--out", str(folder), "--json", *(gpus if itself else ())),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "pruningnet.safetensors").unlink(missing_ok=True)
    shutil.rmtree(folder / "work", ignore_errors=True)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    for stage in ("baseline", "plan", "prune", "finetune", "report"):
        assert (folder / "stages" / f"{stage}.json").is_file()
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert [trial["number"] for trial in trials] == list(range(len(trials)))
    assert report["notes"]["candidates"] == len(trials) >= 6
    small = fp.load(folder)
    assert sum(p.numel() for p in small.parameters()) == report["cost"]["pruned"]["params"]
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 2
