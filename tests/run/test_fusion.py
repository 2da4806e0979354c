"""Fusing saved networks, what is kept of it, and what is no longer there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastprune import artifact, data, models
from fastprune.data import DataOptions, Normalization
from fastprune.errors import ArtifactError, ConfigError, GraphError
from fastprune.graph import PruningPlan
from fastprune.nn import FusionHead
from fastprune.pruning import prune
from fastprune.run.fusion import fuse, fused_data
from fastprune.run.fusion_file import Fusion, fused_network, load_fusion
from fastprune.training import evaluate
from fastprune.training.fusion import FusionOptions

DATA = DataOptions(train_limit=150, test_limit=70, validation=60, eval_batch_size=32)
OPTIONS = FusionOptions(epochs=4, lr=0.01, batch_size=32, checkpoint_every=0)
MEAN = ((0.3, 0.3, 0.3), (0.3, 0.3, 0.3))


def expert(path: Path, seed: int, **changed: Any) -> Path:
    """A small pruned network that has learned nothing."""
    torch.manual_seed(seed)
    model = models.build("resnet20_cifar", num_classes=10, depth=8)
    small = prune(model, torch.zeros(1, 3, 32, 32), criterion="l1", budget={"params": 0.3})
    given = {
        "plan": small.plan,
        "architecture": "resnet20_cifar",
        "options": {"depth": 8},
        "num_classes": 10,
        "normalization": MEAN,
        **changed,
    }
    artifact.save(path, small.model, **given)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Fusion]:
    """Two experts and their fusion; to be copied before anything is done to them."""
    folder = tmp_path_factory.mktemp("fusion")
    torch.set_num_threads(1)
    experts = [expert(folder / f"device{n}" / "pruned", n) for n in range(2)]
    return experts, fuse(
        experts, folder / "fused", options=OPTIONS, data_options=DATA, device="cpu"
    )


@pytest.fixture
def copied(made: tuple[list[Path], Fusion], tmp_path: Path) -> Path:
    """A copy of the folder of both."""
    where = tmp_path / "moved"
    shutil.copytree(made[1].folder.parent, where)
    return where


def fused_again(folder: Path, **changed: Any) -> Fusion:
    given = {"options": OPTIONS, "data_options": DATA, "device": "cpu", **changed}
    return fuse([folder / f"device{n}" for n in range(2)], folder / "fused", **given)


def test_the_test_accuracy_is_that_of_one_network(made: tuple[list[Path], Fusion]) -> None:
    fusion = made[1]
    images = fused_data(fusion, DATA)
    assert images.normalization == Normalization(mean=MEAN[0], std=MEAN[1])
    pipeline, _ = data.load_test(images)

    found = evaluate(fused_network(fusion), pipeline, device="cpu")

    assert found == fusion.test
    assert found.images == 70
    assert fusion.validation.images == 60


def test_the_head_is_a_saved_network(made: tuple[list[Path], Fusion]) -> None:
    fusion = made[1]
    head = artifact.load(fusion.folder / "head")

    assert isinstance(head, FusionHead)
    assert head.features == sum(saved.features for saved in fusion.experts)
    assert head.num_classes == 10
    assert torch.equal(head[0].weight, fused_network(fusion).head[0].weight)


def test_it_is_found_again_wherever_the_folder_is(copied: Path) -> None:
    fusion = load_fusion(copied / "fused")

    assert [saved.stem for saved in fusion.experts] == [
        copied / "fused" / ".." / f"device{n}" / "pruned" for n in range(2)
    ]
    before = (copied / "fused" / "fusion.json").stat().st_mtime_ns
    # Run directories name their product; nothing is trained again.
    assert fused_again(copied) == fusion
    assert (copied / "fused" / "fusion.json").stat().st_mtime_ns == before


def test_a_missing_or_foreign_expert_is_named(copied: Path, tmp_path: Path) -> None:
    second = copied / "device1" / "pruned.safetensors"
    other = expert(tmp_path / "other", 7)
    second.rename(tmp_path / "kept")
    for file in ("pruned.safetensors", "pruned.json"):
        # A newer checkpoint in the same folder is no replacement.
        shutil.copy(copied / "device0" / file, copied / "device1" / f"newer-{file}")

    with pytest.raises(ArtifactError, match=r"fusion.json: expert 1: .*pruned.safetensors is mis"):
        load_fusion(copied / "fused")
    shutil.copy(other.with_suffix(".safetensors"), second)
    with pytest.raises(ArtifactError, match=r"expert 1: .*pruned.safetensors is not the file"):
        load_fusion(copied / "fused")
    (tmp_path / "kept").rename(second)
    fusion = load_fusion(copied / "fused")
    (copied / "device0" / "pruned.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"expert 0: .*pruned.json is not the file"):
        fused_network(fusion)


def test_another_head_is_named(copied: Path) -> None:
    head = copied / "fused" / "head"
    artifact.save(
        head,
        FusionHead(8, 10),
        plan=PruningPlan({}),
        architecture="fastprune.nn:FusionHead",
        options={"features": 8},
        num_classes=10,
        input_shape=(8,),
    )
    with pytest.raises(ArtifactError, match=r"head: .*head.json is not the file that was fused"):
        load_fusion(copied / "fused")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "fusion.json: not the description of fused networks: "),
        ('{"format": 1}', "fusion.json: not the description of fused networks: '"),
        ('{"format": 2}', "format 2 is of a newer fastprune"),
        (None, "fusion.json: missing; expected what fusing writes"),
    ],
)
def test_a_broken_description_is_one_clear_error(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "fusion.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        load_fusion(tmp_path)


class Stop(Exception):
    """What ends a fusion from outside."""


class Stopping:
    """Progress that ends the head's training in its second epoch."""

    @contextmanager
    def start(self, title: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[Any]:
        self.title, self.left = title, 2
        yield self

    def advance(self, n: int = 1, **figures: float) -> None:
        self.left -= 1
        if self.left == 0 and self.title == "fusion":
            raise Stop

    def note(self, message: str) -> None:
        raise AssertionError(message)


def test_stopped_it_goes_on_to_the_same_bytes(
    made: tuple[list[Path], Fusion], copied: Path
) -> None:
    shutil.rmtree(copied / "fused")
    with pytest.raises(Stop):
        fused_again(copied, progress=Stopping())
    assert not (copied / "fused" / "fusion.json").exists()
    torch.manual_seed(99)

    fusion = fused_again(copied)

    for name in ("fusion.json", "head.json", "head.safetensors"):
        one, two = (place / name for place in (fusion.folder, made[1].folder))
        assert one.read_bytes() == two.read_bytes(), name


def test_what_does_not_go_together_is_refused(
    made: tuple[list[Path], Fusion], tmp_path: Path
) -> None:
    first = made[0][0]
    other = expert(tmp_path / "other", 3, normalization=((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ArtifactError, match=r"other: normalization: got .* experts have to be of"):
        fuse([first, other], tmp_path / "out", data_options=DATA)
    with pytest.raises(ConfigError, match="experts: expected one saved network or more"):
        fuse([], tmp_path / "out", data_options=DATA)
    none = DATA.model_copy(update={"validation": 0})
    with pytest.raises(ConfigError, match=r"data.validation: expected images"):
        fuse([first], tmp_path / "out", data_options=none)
    given = Normalization(mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"data.normalization: differs from that of the experts"):
        fuse(
            [first],
            tmp_path / "out",
            data_options=DATA.model_copy(update={"normalization": given}),
        )
    with pytest.raises(ArtifactError, match="nowhere: no saved network there"):
        fuse([tmp_path / "nowhere"], tmp_path / "out", data_options=DATA)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/out: cannot write there"):
        fuse([first], tmp_path / "file" / "out", data_options=DATA)
    assert not (tmp_path / "out").exists()


def test_experts_that_see_too_little_for_a_head_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 3, 32), nn.Flatten(), nn.Linear(3, 10))\n"
    )
    name = f"{file}:net"
    artifact.save(
        tmp_path / "saved",
        models.build(name),
        plan=PruningPlan({}),
        architecture=name,
        input_shape=(3, 32, 32),
    )
    with pytest.raises(ConfigError, match=r"experts: expected 4 features or more .* got 3"):
        fuse([tmp_path / "saved"], tmp_path / "out", data_options=DATA)
    assert not (tmp_path / "out").exists()


def test_an_expert_without_a_last_linear_layer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten())\n"
    )
    name = f"{file}:net"
    artifact.save(
        tmp_path / "saved",
        models.build(name),
        plan=PruningPlan({}),
        architecture=name,
        input_shape=(3, 32, 32),
    )
    with pytest.raises(GraphError, match="saved: the network's output is made by flatten"):
        fuse([tmp_path / "saved"], tmp_path / "out", data_options=DATA, device="cpu")
