"""The published networks and configurations on real CIFAR-10 (FASTPRUNE_DATA), cut short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastprune.config import load_config, make_config
from fastprune.run import commands, pipeline
from fastprune.run.grouping import group_run

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session")
def cifar10(fastprune_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 as torchvision lays it out."""
    root = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, fastprune_data / "unpack.py", root], check=True)
    return root


def test_the_published_resnet20_scores_what_is_published(
    fastprune_data: Path, cifar10: Path
) -> None:
    found = commands.evaluate(
        "resnet20_cifar",
        weights=str(fastprune_data / "weights/resnet20-12fca82f.th"),
        data="cifar10",
        root=str(cifar10),
        data_options=(),
        split="test",
        normalization=None,
        num_classes=None,
        model_options=(),
        seed=0,
        device="cpu",
        threads=1,
        quiet=True,
    )

    assert found["top1"] == 91.73
    assert found["images"] == 10_000
    assert found["normalization"]["source"] == "weights"


@pytest.mark.parametrize("network", ["vgg13", "vgg16", "preresnet164", "densenet40"])
def test_the_slimming_configurations_run(network: str, cifar10: Path, tmp_path: Path) -> None:
    short = {"epochs": 1, "lr": 0.05}
    config = load_config(
        CONFIGS / f"slimming_{network}_cifar10.yaml",
        [
            f"data.root={cifar10}",
            "data.train_limit=64",
            "data.test_limit=50",
            f"method.train={short}",
            f"finetune={short}",
            "device=cpu",
            "threads=1",
            "latency.repeats=0",
        ],
    )
    report = pipeline.run(config, tmp_path, quiet=True)
    notes = report["notes"]

    assert report["cost"]["kept"]["macs"] < 0.95
    assert report["oracle"]["relative_error"] < 1e-10
    dropped = int(0.4 * notes["batch_norm_channels"]) + 1
    assert notes["dropped_by_threshold"] == pytest.approx(dropped, rel=0.01)


def test_the_one_shot_configuration_runs(
    fastprune_data: Path, cifar10: Path, tmp_path: Path
) -> None:
    config = load_config(
        CONFIGS / "oneshot_l1_resnet56_cifar10_cpu.yaml",
        [
            f"data.root={cifar10}",
            f"model.weights={fastprune_data / 'weights/resnet56-4bfd9763.th'}",
            "data.train_limit=512",
            "data.test_limit=200",
            "finetune.epochs=1",
            "device=cpu",
            "threads=1",
            "latency.repeats=0",
        ],
    )
    report = pipeline.run(config, tmp_path, quiet=True)
    accuracy = report["accuracy"]

    assert report["cost"]["unpruned"]["macs"] / report["cost"]["pruned"]["macs"] >= 2.1
    assert accuracy["baseline"]["top1"] > 90
    assert accuracy["finetuned"]["top1"] > accuracy["pruned"]["top1"]


@pytest.mark.parametrize("similarity", ["cosine", "covariance"])
def test_the_published_resnet20_groups_vehicles_and_animals(
    fastprune_data: Path, cifar10: Path, tmp_path: Path, similarity: str
) -> None:
    weights = str(fastprune_data / "weights/resnet20-12fca82f.th")
    given = {
        "model": {"name": "resnet20_cifar", "weights": weights},
        "data": {"name": "cifar10", "root": str(cifar10), "train_limit": 2000, "test_limit": 100},
        "method": {"name": "one_shot"},
        "prune": {"budget": {"macs": 0.5}},
        "device": "cpu",
        "threads": 1,
    }
    pipeline.run(make_config(given), tmp_path, until="baseline", quiet=True)
    found = group_run(tmp_path, similarity, quiet=True).grouping
    for devices in found.devices:
        print(devices, *found.groups(devices))

    # What PAPM's authors found with a ResNet-18.
    assert found.groups(2) == ((0, 1, 8, 9), (2, 3, 4, 5, 6, 7))
    # Cat and dog are the last to be parted.
    assert (3, 5) in found.groups(9)
