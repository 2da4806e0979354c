"""Every format, loaded again as its users load it; and what is left when something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from export_cases import CLASSES, MEAN, STD, save_pruned
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import fastprune as fp
from fastprune import models
from fastprune.artifact import load_state
from fastprune.cli import app
from fastprune.config import make_config
from fastprune.data import DataOptions
from fastprune.errors import ArtifactError, ConfigError, FastpruneError, GraphError
from fastprune.graph import PruningPlan
from fastprune.run import pipeline
from fastprune.run.directory import saved_config
from fastprune.run.export import FORMATS, _safetensors, _standalone, export
from fastprune.run.fusion import fuse
from fastprune.run.fusion_file import fused_network, load_fusion
from fastprune.training.fusion import FusionOptions

PIXELS = ("normalized", "unit", "uint8")


def need(format: str) -> None:
    if format == "onnx":
        for name in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(name)


def given_as(pixels: str, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, H, W]`` of bytes as an export gets them, and as the pruned network does."""
    mean, std = (torch.tensor(of).view(-1, 1, 1) for of in (MEAN, STD))
    normalized = (levels - 255 * mean) / (255 * std)
    return {"normalized": normalized, "unit": levels / 255, "uint8": levels}[pixels], normalized


@pytest.mark.parametrize("pixels", PIXELS)
def test_onnx_runs_with_any_batch_and_says_what_it_is(
    saved: Path, tmp_path: Path, pixels: str
) -> None:
    need("onnx")
    import onnx
    import onnxruntime

    found = export(saved, "onnx", out=tmp_path / "out", pixels=pixels, threads=1, quiet=True)

    file = tmp_path / "out" / "model.onnx"
    assert found["files"] == [{"file": str(file), "bytes": file.stat().st_size}]
    assert [f.name for f in file.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 32, 32])
    assert (logits.name, logits.shape) == ("logits", ["batch", 10])
    assert images.type == ("tensor(uint8)" if pixels == "uint8" else "tensor(float)")
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == list(CLASSES)
    assert json.loads(properties["normalization"]) == {"mean": list(MEAN), "std": list(STD)}
    assert json.loads(properties["fastprune"])["input"]["pixels"] == pixels
    network, tolerance = fp.load(saved), found["parts"][0]["checked"]["tolerance"]
    for count in (1, 3):
        levels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        given, normalized = given_as(pixels, levels)
        (outputs,) = session.run(None, {"images": given.numpy()})
        with torch.no_grad():
            expected = network(normalized)
        assert (torch.from_numpy(outputs) - expected).abs().max() <= tolerance


_LOAD = """
import json, sys, torch
from safetensors.torch import load_file, save_file
extra = {"fastprune.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
network = program.module()
assert "fastprune" not in sys.modules
with torch.no_grad():
    made = {name: network(x).clone() for name, x in load_file(sys.argv[2]).items()}
save_file(made, sys.argv[3], {"extra": extra["fastprune.json"]})
"""


def test_torch_export_runs_in_a_fresh_process(saved: Path, tmp_path: Path) -> None:
    found = export(saved, "torch-export", out=tmp_path / "out", pixels="unit", quiet=True)

    levels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    given, normalized = given_as("unit", levels)
    save_file({"1": given[:1].clone(), "5": given}, tmp_path / "images")
    command = [sys.executable, "-c", _LOAD, tmp_path / "out" / "model.pt2"]
    subprocess.run([*command, tmp_path / "images", tmp_path / "made"], check=True)
    made = load_state(tmp_path / "made")
    network = fp.load(saved)
    with torch.no_grad():
        for name, expected in (("1", network(normalized[:1])), ("5", network(normalized))):
            assert (made[name] - expected).abs().max() <= found["parts"][0]["checked"]["tolerance"]
    with safe_open(tmp_path / "made", framework="pt") as file:
        facts = json.loads(file.metadata()["extra"])
    assert facts["classes"] == list(CLASSES)
    assert facts["input"] == {"shape": ["batch", 3, 32, 32], "dtype": "float32", "pixels": "unit"}


def test_safetensors_describes_itself(saved: Path, tmp_path: Path) -> None:
    found = export(saved, "safetensors", out=tmp_path / "out", quiet=True)

    file = tmp_path / "out" / "model.safetensors"
    state, expected = load_state(file), fp.load(saved).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    with safe_open(file, framework="pt") as opened:
        facts = json.loads(opened.metadata()["fastprune"])
    assert facts["architecture"] == "resnet20_cifar"
    assert facts["normalization"] == {"mean": list(MEAN), "std": list(STD)}
    assert found["parts"][0]["checked"]["difference"] == 0


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_exported_is_checked_on_the_images_of_the_run(
    format: str, finished_run: Path, tmp_path: Path
) -> None:
    need(format)

    found = export(finished_run, format, out=tmp_path / "out", threads=1, quiet=True)

    checked = found["parts"][0]["checked"]
    assert (checked["on"], checked["note"]) == ("digits, test", "")
    assert checked["images"] == checked["same"] == 40
    assert checked["difference"] <= checked["tolerance"]
    if format != "onnx":
        assert checked["difference"] == 0


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits; to be left as it is."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    given: dict[str, Any] = {
        "model": {"name": "fastprune.testing.methods:TinyResidual"},
        "data": {"name": "digits", "train_limit": 96, "test_limit": 40, "batch_size": 32},
        "baseline": {"epochs": 1, "lr": 0.05},
        "method": {"name": "one_shot"},
        "prune": {"budget": {"macs": 0.5}},
        "threads": 1,
        "device": "cpu",
        "latency": {"repeats": 0},
    }
    pipeline.run(make_config(given), folder, quiet=True)
    return folder


def test_files_lie_in_the_run_directory(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)

    result = CliRunner().invoke(app, ["export", str(run), "--format", "safetensors", "--json"])

    assert result.exit_code == 0, result.stderr
    (file,) = json.loads(result.stdout)["files"]
    assert Path(file["file"]) == run / "exported" / "safetensors" / "model.safetensors"
    # A run that goes on is not in the way of what was exported from it.
    pipeline.run(saved_config(run), run, quiet=True)
    assert Path(file["file"]).is_file()
    # One that starts anew makes another network.
    pipeline.run(saved_config(run), run, fresh=True, quiet=True, until="baseline")
    assert not (run / "exported").exists()


@pytest.mark.parametrize("format", ["onnx", "standalone"])
def test_a_path_may_be_relative(
    format: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(format)
    shutil.copytree(saved.parent, tmp_path / "nets")
    monkeypatch.chdir(tmp_path)

    export(Path("nets/small"), format, quiet=True)

    assert any((tmp_path / "nets" / "small-exported" / format).iterdir())


def test_images_that_are_not_at_hand_are_said_to_be_random(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = run / "config.yaml"
    text = config.read_text("utf-8")
    assert "  name: digits\n" in text
    config.write_text(text.replace("  name: digits\n", "  name: cifar10\n"), "utf-8")

    result = CliRunner().invoke(app, ["export", str(run), "--format", "safetensors"])

    assert result.exit_code == 0, result.stderr
    assert "checked on random images: the run's dataset is not at hand (" in result.stderr
    assert "checked on 64 images (random)" in result.stdout


def refused(
    error: type[FastpruneError], folder: Path, path: Path, format: str, **given: Any
) -> str:
    """The message of an export that is refused, and leaves nothing."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(error) as caught:
        export(path, format, out=folder, quiet=True, **given)
    assert sorted(folder.parent.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "reason", "format"),
    [
        ("Deciding", "its code decides by what is in the images (", "onnx"),
        ("Deciding", "its code decides by what is in the images (", "torch-export"),
        ("Fixed", "its code fixes the number of images of a batch", "standalone"),
    ],
)
def test_a_network_that_cannot_be_followed_leaves_nothing(
    name: str, reason: str, format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need(format)
    save_pruned(tmp_path / "net", f"standalone_networks:{name}")

    message = refused(GraphError, tmp_path / "deep" / "out", tmp_path / "net", format)
    said = capfd.readouterr()

    assert said.out == said.err == ""

    assert message.startswith(f"standalone_networks:{name}: torch.export cannot follow this")
    assert reason in message


def test_a_step_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    need("onnx")
    save_pruned(tmp_path / "net", "standalone_networks:Bessel")

    message = refused(ArtifactError, tmp_path / "out", tmp_path / "net", "onnx")

    assert message.startswith("standalone_networks:Bessel: cannot be written as ONNX: ")
    assert "bessel_j0" in message


def damaged(write: Callable[..., None], change: Callable[[Path], None]) -> Callable[..., None]:
    def written(subject: Any, folder: Path) -> None:
        write(subject, folder)
        change(folder)

    return written


def test_an_export_that_computes_something_else_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(folder: Path) -> None:
        file = folder / "model.py"
        text = file.read_text("utf-8")
        assert "y = F.relu(y)" in text
        file.write_text(text.replace("y = F.relu(y)", "y = F.silu(y)", 1), "utf-8")

    export(saved, "standalone", out=tmp_path / "out", quiet=True)
    before = (tmp_path / "out" / "model.py").read_bytes()
    monkeypatch.setattr(_standalone, "write", damaged(_standalone.write, change))

    message = refused(ArtifactError, tmp_path / "out", saved, "standalone")

    assert "as standalone: its outputs differ from those of the pruned network by" in message
    assert (tmp_path / "out" / "model.py").read_bytes() == before


def test_an_export_that_does_not_run_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(folder: Path) -> None:
        file = folder / "model.py"
        text = file.read_text("utf-8")
        file.write_text(text.replace("import hashlib\n", "import fastprune\n"), "utf-8")

    monkeypatch.setattr(_standalone, "write", damaged(_standalone.write, change))

    message = refused(ArtifactError, tmp_path / "out", saved, "standalone")

    assert message.endswith("does not run: ImportError: fastprune: not to be imported here")


def test_weights_that_are_others_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        state["linear.bias"][3] += 1e-4
        save_file(state, folder / "model.safetensors", {"fastprune": "{}"})

    monkeypatch.setattr(_safetensors, "write", damaged(_safetensors.write, change))

    assert "differ" in refused(ArtifactError, tmp_path / "out", saved, "safetensors")


def test_what_is_asked_for_wrongly(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_pruned(tmp_path / "net", "resnet20_cifar", depth=8)
    described = json.loads((tmp_path / "net.json").read_text("utf-8"))
    described["normalization"] = None
    (tmp_path / "net.json").write_text(json.dumps(described), "utf-8")

    assert "did you mean 'onnx'" in refused(ConfigError, out, saved, "onxx")
    assert "did you mean 'uint8'" in refused(ConfigError, out, saved, "onnx", pixels="uint")
    message = refused(ConfigError, out, saved, "safetensors", pixels="unit")
    assert "leave --pixels out" in message
    message = refused(ConfigError, out, tmp_path / "net", "torch-export", pixels="uint8")
    assert "was saved without a normalisation" in message
    assert "no saved network there" in refused(ArtifactError, out, tmp_path / "x", "onnx")
    message = refused(ConfigError, out, saved, "safetensors", root="somewhere")
    assert "--data: expected the name of a dataset" in message
    message = refused(FastpruneError, out, saved, "safetensors", data="cifar10", root="/nowhere")
    assert "/nowhere" in message


def test_a_folder_that_cannot_be_written(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")

    message = refused(ArtifactError, tmp_path / "file" / "out", saved, "safetensors")

    assert message.endswith("out: cannot be written: Not a directory")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_command(
    missing: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if name == missing:
            monkeypatch.delitem(sys.modules, name, raising=False)
        else:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))

    message = refused(FastpruneError, tmp_path / "out", saved, "onnx")

    assert message == (f"{missing}: not installed; mend it with: python -m pip install {missing}")


def test_onnx_is_not_for_bfloat16(tmp_path: Path) -> None:
    need("onnx")
    small = models.build("resnet20_cifar", depth=8).to(torch.bfloat16)
    fp.save(
        tmp_path / "net",
        small,
        plan=PruningPlan({}),
        architecture="resnet20_cifar",
        options={"depth": 8},
    )

    message = refused(ConfigError, tmp_path / "out", tmp_path / "net", "onnx")

    assert "torch.bfloat16" in message
    assert "float32 or float16" in message


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two fused networks that learned nothing; to be left as it is."""
    folder = tmp_path_factory.mktemp("fused")
    for number in range(2):
        save_pruned(folder / f"device{number}" / "pruned", "resnet20_cifar", depth=8)
    fuse(
        [folder / f"device{number}" / "pruned" for number in range(2)],
        folder / "all",
        options=FusionOptions(epochs=1, lr=0.01, batch_size=32),
        data_options=DataOptions(train_limit=100, test_limit=20, validation=30),
        device="cpu",
    )
    return folder / "all"


@pytest.mark.parametrize("format", ["onnx", "standalone"])
def test_fused_networks_are_exported_part_by_part(
    format: str, fused: Path, tmp_path: Path
) -> None:
    need(format)

    found = export(fused, format, out=tmp_path / "out", data="digits", threads=1, quiet=True)

    assert [part["output"] for part in found["parts"]] == ["features", "features", "logits"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["expert0", "expert1", "head"]
    for part in found["parts"]:
        assert part["checked"]["difference"] <= part["checked"]["tolerance"]
    assert [part["checked"]["on"] for part in found["parts"]] == [
        "digits, test",
        "digits, test",
        "random",
    ]


def test_exported_parts_together_are_the_fused_network(fused: Path, tmp_path: Path) -> None:
    export(fused, "torch-export", out=tmp_path / "out", pixels="unit", quiet=True)

    expert0, expert1, head = (
        torch.export.load(tmp_path / "out" / part / "model.pt2").module()
        for part in ("expert0", "expert1", "head")
    )
    levels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    given, normalized = given_as("unit", levels)
    with torch.no_grad():
        got = head(torch.cat([expert0(given), expert1(given)], 1))
        expected = fused_network(load_fusion(fused))(normalized)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("format", ["onnx", "standalone"])
def test_an_expert_and_a_head_are_ordinary_networks_too(
    format: str, fused: Path, tmp_path: Path
) -> None:
    need(format)

    head = export(fused / "head", format, out=tmp_path / "head", threads=1, quiet=True)
    expert = export(
        fused.parent / "device0", format, out=tmp_path / "expert", threads=1, quiet=True
    )

    assert [head["parts"][0]["model"], expert["parts"][0]["model"]] == [
        "fastprune.nn:FusionHead",
        "resnet20_cifar",
    ]


def test_a_fusion_that_lost_a_part_is_refused(fused: Path, tmp_path: Path) -> None:
    shutil.copytree(fused.parent, tmp_path / "fused")
    (tmp_path / "fused" / "device1" / "pruned.json").unlink()

    message = refused(ArtifactError, tmp_path / "out", tmp_path / "fused" / "all", "standalone")

    assert "expert 1" in message
    assert "pruned.json is missing" in message


def test_a_run_of_several_networks_says_which_to_name(fused: Path, tmp_path: Path) -> None:
    shutil.copytree(fused, tmp_path / "run" / "fused" / "2")

    message = refused(ConfigError, tmp_path / "out", tmp_path / "run", "onnx")

    assert message.endswith(f"such as {tmp_path / 'run' / 'fused' / '2'}")
