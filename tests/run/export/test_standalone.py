"""Stand-alone files of every registered network, run where fastprune does not import."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import standalone_networks
import torch
from export_cases import MEAN, STD, BareProcess, save_pruned
from torch import Tensor, nn

import fastprune as fp
from fastprune import models
from fastprune.artifact import load_state
from fastprune.errors import GraphError
from fastprune.graph import PruningPlan
from fastprune.run.export import _standalone
from fastprune.run.export._subject import Subject, open_subject

# Shallow ones of the same code, where the family has any.
SHALLOW: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}_cifar": {"depth": 8} for depth in (20, 32, 44, 56, 110)},
    "preresnet164_cifar": {"depth": 11},
    "densenet40_cifar": {"depth": 10},
}
NETWORKS = [network.name for network in models.list_networks()]
USERS = [
    "user_networks:TutorialResNet32",
    "user_networks:CustomVGG",
    "user_networks:custom_vgg_with_hidden_layer",
    "standalone_networks:Everything",
    "standalone_networks:Root",
    "standalone_networks:Bessel",
]


def written(stem: Path, folder: Path, pixels: str = "normalized") -> Subject:
    subject = open_subject(stem, pixels)
    folder.mkdir()
    _standalone.write(subject, folder)
    return subject


def batches_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {str(n): torch.randn(n, *shape).to(dtype) for n in (1, 2, 5)}


@pytest.mark.parametrize("name", [*NETWORKS, *USERS])
def test_it_gives_the_same_bits_without_fastprune(
    name: str, tmp_path: Path, bare: BareProcess
) -> None:
    options = SHALLOW.get(name, {})
    save_pruned(tmp_path / "net", name, select="auto", **options)
    subject = written(tmp_path / "net", tmp_path / "out")
    shape = subject.input_shape if ":" in name or subject.input_shape[1] == 32 else (3, 224, 224)
    batches = batches_of(shape)

    state, outputs = bare.run(tmp_path / "out", batches)

    stored = load_state(tmp_path / "net.safetensors")
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key]) for key in stored)
    network = fp.load(tmp_path / "net")
    with torch.no_grad():
        for key, images in batches.items():
            assert torch.equal(outputs[key], network(images))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_it_can_be_moved_to_another_dtype(
    dtype: str, tmp_path: Path, bare: BareProcess, saved: Path
) -> None:
    written(saved, tmp_path / "out")
    images = torch.randn(3, 3, 32, 32).to(getattr(torch, dtype))

    _, outputs = bare.run(tmp_path / "out", {"3": images}, dtype)

    with torch.no_grad():
        expected = fp.load(saved).to(images.dtype)(images)
    assert torch.equal(outputs["3"], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_dtype_stay_so(
    dtype: torch.dtype, tmp_path: Path, bare: BareProcess
) -> None:
    model = models.build("resnet20_cifar", depth=8).to(dtype)
    fp.save(tmp_path / "net", model, plan=PruningPlan({}), architecture="resnet20_cifar",
            options={"depth": 8})  # fmt: skip
    written(tmp_path / "net", tmp_path / "out")
    images = torch.randn(3, 3, 32, 32).to(dtype)

    state, outputs = bare.run(tmp_path / "out", {"3": images}, str(dtype).removeprefix("torch."))

    assert state["conv1.weight"].dtype is dtype
    with torch.no_grad():
        assert torch.equal(outputs["3"], model.eval()(images))


@pytest.mark.parametrize("pixels", ["unit", "uint8"])
def test_it_normalises_pixels(pixels: str, tmp_path: Path, bare: BareProcess, saved: Path) -> None:
    subject = written(saved, tmp_path / "out", pixels)
    levels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    given = levels if pixels == "uint8" else levels / 255

    _, outputs = bare.run(tmp_path / "out", {"4": given})

    with torch.no_grad():
        assert torch.equal(outputs["4"], subject.whole(given))
        mean, std = (torch.tensor(of).view(-1, 1, 1) for of in (MEAN, STD))
        expected = fp.load(saved)((levels / 255 - mean) / std)
    torch.testing.assert_close(outputs["4"], expected)


@pytest.mark.parametrize("pixels", ["unit", "uint8"])
def test_it_refuses_pixels_of_the_other_kind(pixels: str, tmp_path: Path, saved: Path) -> None:
    written(saved, tmp_path / "out", pixels)
    spec = importlib.util.spec_from_file_location(
        "standalone_model", tmp_path / "out" / "model.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    levels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"expected pixels from 0 to .*, got torch"):
        module.load()(levels / 255 if pixels == "uint8" else levels)


def test_layers_are_written_as_layers(tmp_path: Path) -> None:
    save_pruned(tmp_path / "net", "standalone_networks:Everything")
    written(tmp_path / "net", tmp_path / "out")

    text = (tmp_path / "out" / "model.py").read_text("utf-8")

    steps = text.partition("def forward")[2].partition("def load")[0]
    assert "x = self.plain(x)" in steps
    assert "x = self.hidden(x)" in steps
    # Other than the layer has it, so not the layer.
    assert "F.conv2d(x, self.left.weight, None, (2, 2), (1, 1), (1, 1), 4)" in steps


def test_weights_that_are_others_are_refused(tmp_path: Path, saved: Path) -> None:
    written(saved, tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    spec = importlib.util.spec_from_file_location("model", tmp_path / "out" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    with pytest.raises(ValueError, match="not the file that was written with"):
        module.load()
    assert isinstance(module.load(weights), nn.Module)


def test_a_step_of_another_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save_pruned(tmp_path / "net", "standalone_networks:Counting")
    subject = open_subject(tmp_path / "net")

    with pytest.raises(GraphError, match=r"fastprune::relu_zero_count.* package \(fastprune\)"):
        _standalone.write(subject, tmp_path / "out")


def test_quotes_in_paths_and_classes_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / 'a"""b'
    folder.mkdir()
    file = folder / "nets.py"
    file.write_text(Path(standalone_networks.__file__).read_text("utf-8"), "utf-8")
    save_pruned(tmp_path / "net", f"{file}:Root")
    described = json.loads((tmp_path / "net.json").read_text("utf-8"))
    described["classes"] = [f"a 'b' \"c\" \\ {{}} ü\n {n} " * 9 for n in range(10)]
    (tmp_path / "net.json").write_text(json.dumps(described), "utf-8")
    written(tmp_path / "net", tmp_path / "out")

    names: dict[str, Any] = {}
    exec(compile((tmp_path / "out" / "model.py").read_text("utf-8"), "model", "exec"), names)

    assert names["ARCHITECTURE"] == f"{file}:Root"
    assert names["CLASSES"] == tuple(described["classes"])
