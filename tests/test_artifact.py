from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastprune as fp
from fastprune import models
from fastprune.artifact import FORMAT, describe, load_state, save_state
from fastprune.errors import ArtifactError
from fastprune.graph import PruningPlan


def pruned(
    model: nn.Module, shape: tuple[int, ...], select: Any = ()
) -> tuple[nn.Module, PruningPlan]:
    """A network cut to 0.6 of its MACs, with statistics and scales unlike the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean)
    graph = fp.trace(model, torch.zeros(1, *shape), select=select)
    plan = fp.solve(graph, fp.criteria.l1(model, graph), {"macs": 0.6})
    return fp.apply_plan(model, graph, plan), plan


def small_resnet(seed: int = 0) -> tuple[nn.Module, PruningPlan]:
    torch.manual_seed(seed)
    return pruned(models.build("resnet20_cifar", depth=8), (3, 32, 32))


def save_resnet(path: Path, **more: Any) -> nn.Module:
    small, plan = small_resnet()
    fp.save(path, small, plan=plan, architecture="resnet20_cifar", options={"depth": 8}, **more)
    return small


@pytest.mark.parametrize(
    ("name", "options", "shape", "select"),
    [
        ("resnet20_cifar", {"depth": 8}, (3, 32, 32), ()),
        ("preresnet164_cifar", {"depth": 11}, (3, 32, 32), "auto"),
        ("densenet40_cifar", {"depth": 10}, (3, 32, 32), "auto"),
        ("torchvision:squeezenet1_1", {}, (3, 64, 64), ()),
        ("torchvision:mnasnet0_5", {}, (3, 64, 64), ()),
        ("timm:resnet10t", {}, (3, 64, 64), ()),
    ],
)
def test_what_is_saved_comes_back(
    tmp_path: Path, name: str, options: dict[str, Any], shape: tuple[int, ...], select: Any
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    small, plan = pruned(models.build(name, num_classes=10, **options), shape, select)
    path = tmp_path / "net-0.6"
    fp.save(
        path,
        small,
        plan=plan,
        architecture=name,
        options=options,
        num_classes=10,
        input_shape=shape,
    )
    loaded = fp.load(path)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["net-0.6.json", "net-0.6.safetensors"]
    assert not loaded.training
    inputs = torch.randn(2, *shape)
    assert torch.equal(loaded(inputs), small.eval()(inputs))


NETWORK = """
from torch import nn

def network(width=8, num_classes=3):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes),
    )
"""
LOAD = """
import sys, torch, fastprune as fp
inputs = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
for path in sys.argv[1:]:
    print(fp.load(path)(inputs).flatten().tolist())
"""


def test_the_users_own_networks_load_in_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "ownnet.py").write_text(NETWORK)
    inputs = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    expected = []
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        for number, name in enumerate(("ownnet:network", "ownnet.py:network")):
            small, plan = pruned(models.build(name, width=12), (3, 16, 16))
            fp.save(
                tmp_path / f"net{number}",
                small,
                plan=plan,
                architecture=name,
                options={"width": 12},
                input_shape=(3, 16, 16),
            )
            expected.append(str(small.eval()(inputs).flatten().tolist()))
    finally:
        os.chdir(before)
        sys.modules.pop("ownnet", None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "net0", "net1.safetensors"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def test_a_network_moves_with_the_file_that_builds_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "ownnet.py").write_text(NETWORK)
    name = f"{old / 'ownnet.py'}:network"
    small, plan = pruned(models.build(name), (3, 16, 16))
    fp.save(old / "a", small, plan=plan, architecture=name, input_shape=(3, 16, 16))
    old.rename(new)
    inputs = torch.randn(1, 3, 16, 16)

    assert torch.equal(fp.load(new / "a")(inputs), small.eval()(inputs))
    (new / "ownnet.py").unlink()
    with pytest.raises(ArtifactError, match=r"there is no file .*ownnet\.py"):
        fp.load(new / "a")


def test_a_plain_constructor_and_the_plan_are_enough(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2)
        )

    small, plan = pruned(network(), (1, 8, 8))
    fp.save(tmp_path / "a", small, plan=plan, input_shape=(1, 8, 8))
    unpruned = network()
    before = {name: tensor.clone() for name, tensor in unpruned.state_dict().items()}
    loaded = fp.load(tmp_path / "a.json", model=unpruned)

    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(inputs), small(inputs))
    assert all(torch.equal(before[name], t) for name, t in unpruned.state_dict().items())
    with pytest.raises(ArtifactError, match=r"saved without an architecture; give .*model="):
        fp.load(tmp_path / "a")


def test_what_belongs_to_the_weights_is_kept_beside_them(tmp_path: Path) -> None:
    save_resnet(
        tmp_path / "a",
        normalization=((0.1, 0.2, 0.3), (1, 2, 3)),
        classes=[str(n) for n in range(10)],
        metrics={"top1": 93.5},
    )
    _, description = describe(tmp_path / "a")

    assert description["normalization"] == {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    assert description["classes"][9] == "9"
    assert description["metrics"] == {"top1": 93.5}
    assert description["architecture"] == "resnet20_cifar"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    small, plan = small_resnet()
    small.to(dtype)
    fp.save(tmp_path / "a", small, plan=plan, architecture="resnet20_cifar", options={"depth": 8})
    loaded = fp.load(tmp_path / "a")

    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(
        torch.equal(a, b) for a, b in zip(small.parameters(), loaded.parameters(), strict=True)
    )


def test_equal_weights_give_equal_bytes_whatever_their_memory(tmp_path: Path) -> None:
    small, plan = small_resnet()
    names = []
    for number in range(2):
        fp.save(
            tmp_path / str(number),
            small,
            plan=plan,
            architecture="resnet20_cifar",
            options={"depth": 8},
        )
        names.append(tmp_path / f"{number}.safetensors")
        small = small.to(memory_format=torch.channels_last)

    assert names[0].read_bytes() == names[1].read_bytes()


def test_weights_are_written_past_memory_for_whoever_may_read_files(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    (tmp_path / "plain").touch()
    tracemalloc.start()
    try:
        fp.artifact.save_state(file, {"weight": torch.ones(4_000_000)})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4_000_000
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


class Tied(nn.Module):
    """Two convolutions with one weight, and a buffer that is a part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.two.weight = self.one.weight
        self.head = nn.Linear(4, 2)
        self.register_buffer("all", torch.arange(6.0))
        self.register_buffer("part", self.all[2:4])

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(self.stem(x)))
        return self.head(x.mean((2, 3)))


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    network = Tied()
    graph = fp.trace(network, torch.zeros(1, 1, 8, 8))
    plan = PruningPlan({group.name: tuple(range(group.channels)) for group in graph.groups})
    fp.save(tmp_path / "a", network, plan=plan, input_shape=(1, 8, 8))
    loaded = fp.load(tmp_path / "a", model=Tied())

    assert isinstance(loaded, Tied)
    assert loaded.one.weight is loaded.two.weight
    assert torch.equal(loaded.part, torch.tensor([2.0, 3.0]))
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(inputs), network(inputs))
    names = set(load_state(tmp_path / "a.safetensors"))
    assert names == set(network.state_dict())
    once = network.state_dict()["one.weight"].nbytes
    assert (tmp_path / "a.safetensors").stat().st_size < sum(
        t.nbytes for t in network.state_dict().values()
    ) - once + 1500


def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    small, plan = small_resnet()
    full = models.build("resnet20_cifar", depth=8)

    with pytest.raises(ArtifactError, match=r"is not the given network: other shapes: conv1"):
        fp.save(
            tmp_path / "a", full, plan=plan, architecture="resnet20_cifar", options={"depth": 8}
        )
    with pytest.raises(ArtifactError, match=r"cannot be rebuilt from 'vgg11_cifar': group"):
        fp.save(tmp_path / "a", small, plan=plan, architecture="vgg11_cifar")
    with pytest.raises(ArtifactError, match=r"input_shape: expected \(C, H, W\)"):
        fp.save(tmp_path / "a", small, plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_each_kind_of_damage_has_its_message(tmp_path: Path) -> None:
    save_resnet(tmp_path / "a")
    weights, description = tmp_path / "a.safetensors", tmp_path / "a.json"
    good, text = weights.read_bytes(), description.read_text()

    weights.write_bytes(good[:-1])
    with pytest.raises(ArtifactError, match="damaged or replaced"):
        fp.load(tmp_path / "a")
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"a\.safetensors: missing"):
        fp.load(tmp_path / "a")
    weights.write_bytes(good)
    description.unlink()
    with pytest.raises(ArtifactError, match=r"a\.json: missing"):
        fp.load(tmp_path / "a")
    with pytest.raises(ArtifactError, match="no saved network there"):
        fp.load(tmp_path / "b")
    description.write_text("{")
    with pytest.raises(ArtifactError, match="not readable as JSON"):
        fp.load(tmp_path / "a")
    description.write_text("{}")
    with pytest.raises(ArtifactError, match="names no format"):
        fp.load(tmp_path / "a")
    description.write_text(json.dumps(json.loads(text) | {"format": FORMAT + 1}))
    with pytest.raises(ArtifactError, match="of a newer fastprune"):
        fp.load(tmp_path / "a")
    description.write_text(json.dumps(json.loads(text) | {"architecture": "resnet20_cifer"}))
    with pytest.raises(ArtifactError, match="did you mean 'resnet20_cifar'"):
        fp.load(tmp_path / "a")
    description.write_text(json.dumps(json.loads(text) | {"options": {"depth": 14}}))
    with pytest.raises(ArtifactError, match=r"not the weights of 'resnet20_cifar' .*missing: "):
        fp.load(tmp_path / "a")
    description.write_text(text)
    with pytest.raises(ArtifactError, match="cannot be rebuilt from the given model"):
        fp.load(tmp_path / "a", model=models.build("vgg11_cifar"))
    fp.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"input_shape": [3, "x", 32]}, r"input_shape\.1: expected a valid integer, got 'x'"),
        ({"input_shape": [3, 0, 32]}, r"input_shape\.1: expected greater than or equal to 1, "),
        ({"normalization": {"mean": [0.5]}}, r"lacks normalization\.std"),
        ({"num_classes": "10"}, r"num_classes: .*, got '10'"),
        ({"options": None}, r"options: expected a valid dictionary, got None"),
        ({"weights": {}}, r"lacks weights\.file, weights\.sha256"),
        ({"keep": "conv1"}, r"keep: expected a valid list, got 'conv1'"),
    ],
)
def test_a_description_that_says_something_else_is_refused_by_field(
    changed: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    save_resnet(tmp_path / "a")
    file = tmp_path / "a.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    with pytest.raises(ArtifactError, match=rf"^{file}: {expected}"):
        fp.load(tmp_path / "a")


def test_states_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "a", nn.Linear(2, 2))
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:20])

    with pytest.raises(ArtifactError, match="not readable as safetensors"):
        load_state(tmp_path / "b")
    with pytest.raises(ArtifactError, match="not readable as safetensors"):
        load_state(tmp_path / "none")
