"""Whole runs of networks for several devices: what they are made of, and kills in every stage."""

from __future__ import annotations

import json
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parsed import parse
from torch import nn
from typer.testing import CliRunner

from fastprune import artifact, data
from fastprune.cli import app
from fastprune.config import load_config, make_config
from fastprune.errors import ArtifactError, ConfigError, FastpruneError
from fastprune.files import TEMPORARY
from fastprune.run import ensemble, pipeline
from fastprune.run.compare import compare
from fastprune.run.ensemble_report import print_ensemble_report
from fastprune.run.fusion import fused_data
from fastprune.run.fusion_file import Fusion, fused_network, load_fusion
from fastprune.run.grouping import group_run
from fastprune.run.html.write import write_report
from fastprune.run.inference import infer
from fastprune.run.stages import ENSEMBLE_STAGES
from fastprune.training import evaluate

# A checkpoint after every step, so that a training can be killed anywhere and go on.
TRAIN = {"epochs": 2, "lr": 0.05, "precision": "fp32", "checkpoint_every": 0}
GIVEN: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {
        "name": "digits",
        "train_limit": 150,
        "test_limit": 40,
        "batch_size": 32,
        "validation": 50,
    },
    "baseline": TRAIN,
    "method": {
        "name": "papm_split",
        "devices": [2, 3],
        "params_reduction": 0.4,
        "head": {"epochs": 2, "batch_size": 32, "checkpoint_every": 0},
        "inference": {"batches": [1], "repeats": 2},
    },
    "finetune": TRAIN,
    "threads": 1,
    "device": "cpu",
}
ONE = GIVEN | {"method": GIVEN["method"] | {"devices": 2}}
MEASURED = ("seconds", "kills", "warnings", "command", "directory")


class Smooth(nn.Sequential):
    """A network without a ReLU."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, stride=4), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)),
        )


def run(given: dict[str, Any], folder: Path, **how: Any) -> dict[str, Any]:
    return pipeline.run(make_config(given), folder, quiet=True, **how)


def lasting(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    for fusion in report["fusions"]:
        del fusion["latency"]
    return {name: value for name, value in report.items() if name not in MEASURED}


def products(folder: Path) -> dict[str, bytes]:
    """All that lasts of a run, by its name."""
    found = [*folder.glob("experts/*/pruned.*"), *folder.glob("fused/*/*.safetensors")]
    found += [folder / "baseline.safetensors", folder / "groups.csv", folder / "similarity.npy"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(found)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be left as it is."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    run(GIVEN, folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for one number of devices, to be left as it is."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ensemble") / "one"
    run(ONE, folder)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def test_a_run_is_its_groups_experts_and_heads(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    groups = {n: [tuple(part) for part in parts] for n, parts in report["groups"].items()}

    assert {len(parts) for parts in groups.values()} == {2, 3}
    for parts in groups.values():
        assert sorted(label for part in parts for label in part) == list(range(10))
    # A group of both numbers of devices is one expert.
    wanted = {part for parts in groups.values() for part in parts}
    assert {tuple(expert["classes"]) for expert in report["experts"]} == wanted
    assert len(wanted) == 4
    names = {"-".join(map(str, part)) for part in wanted}
    assert {folder.name for folder in (whole / "experts").iterdir()} == names
    full = report["cost"]["unpruned"]["params"]
    for expert in report["experts"]:
        small = artifact.load(whole / expert["run"])
        assert sum(p.numel() for p in small.parameters()) == expert["cost"]["params"]
        assert expert["cost"]["params"] <= 0.6 * full
        assert (whole / expert["run"] / "classes.csv").is_file()
    for picture in ("similarity.png", "dendrogram.png", "devices.png"):
        assert (whole / picture).read_bytes().startswith(b"\x89PNG")


def test_its_page_has_the_groups_the_experts_and_what_they_are_fused_to(
    whole: Path, copied: Path, tmp_path: Path
) -> None:
    report = json.loads((whole / "report.json").read_text())
    page = parse((whole / "report.html").read_text())

    _, *rows = page.table("The fused networks")
    assert [row[:2] for row in rows] == [
        [str(fusion["devices"]), f"{fusion['test']['top1']:.2f}"] for fusion in report["fusions"]
    ]
    _, *rows = page.table("The experts, each a run of its own in a folder of this one")
    assert [[row[0], row[4]] for row in rows] == [
        [expert["run"], f"{expert['cost']['params']:,}"] for expert in report["experts"]
    ]
    _, *rows = page.table("The classes of every device")
    assert len(rows) == 5
    times = {tuple(row[:2]): row[5] for row in page.table("Latency of every part")}
    for fusion in report["fusions"]:
        for row in fusion["latency"]:
            assert times[str(fusion["devices"]), row["part"]] == f"{row['median_ms']:.3f}"
    assert len(page.all("figure")) == 5

    for stage in ENSEMBLE_STAGES[ENSEMBLE_STAGES.index("infer") :]:
        (copied / f"stages/{stage}.json").unlink()
    write_report([copied, whole], tmp_path / "both.html")
    both = parse((tmp_path / "both.html").read_text())
    _, *rows = both.table("The runs; press a heading to sort by it")
    assert [row[:3] for row in rows] == [
        ["copied", "infer is next", "papm_split"],
        ["run", "finished", "papm_split, 2 devices"],
        ["run", "finished", "papm_split, 3 devices"],
    ]


def test_experts_inherit_the_weights_of_the_baseline(whole: Path) -> None:
    trained = artifact.load_state(whole / "baseline.safetensors")
    for folder in (whole / "experts").iterdir():
        theirs = artifact.load_state(folder / "baseline.safetensors")
        assert all(torch.equal(theirs[name], tensor) for name, tensor in trained.items())
        plan = json.loads((folder / "plan.json").read_text())["keep"]
        start = artifact.load_state(folder / "finetune_start.safetensors")
        stem = next(kept for name, kept in plan.items() if name.startswith("stem"))
        assert torch.equal(start["stem.weight"], trained["stem.weight"][list(stem)])
        report = json.loads((folder / "report.json").read_text())
        assert report["accuracy"]["baseline"] is not None
        assert report["method"] == "papm"


def test_the_fused_accuracy_is_that_of_one_network_and_of_split_inference(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    for row in report["fusions"]:
        fusion = load_fusion(whole / "fused" / str(row["devices"]))
        pipeline_, _ = data.load_test(fused_data(fusion))
        found = evaluate(fused_network(fusion), pipeline_, device="cpu").to_dict()

        assert found == row["test"] == row["split"]["test"]
        assert row["split"]["equal"]
        parts = {part["part"] for part in row["latency"]}
        assert {f"expert {n}" for n in range(row["devices"])} < parts
        assert {"slowest expert", "head", "slowest + head", "whole", "unpruned"} < parts


def test_again_it_does_nothing_and_a_moved_run_is_the_same(whole: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(whole, tmp_path / "elsewhere" / "moved"))
    before = {p: p.read_bytes() for p in moved.rglob("*") if p.is_file()}

    run(GIVEN, moved)

    changed = {p.name for p, content in before.items() if p.read_bytes() != content}
    assert changed <= {"lock"}
    assert lasting(moved) == lasting(whole)


def test_a_run_that_was_fused_on_another_machine_goes_on(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(one, tmp_path / "copied"))
    (copied / "stages/infer.json").unlink()

    def elsewhere(folder: Path) -> Fusion:
        found = load_fusion(folder)
        return replace(found, test=replace(found.test, loss=found.test.loss + 1e-6))

    monkeypatch.setattr(ensemble, "load_fusion", elsewhere)
    report = run(ONE, copied)

    (row,) = report["fusions"]
    assert not row["split"]["equal"]
    assert row["split"]["test"] == row["test"]


def test_what_is_lost_of_an_expert_is_made_again(whole: Path, copied: Path) -> None:
    expert = next((copied / "experts").iterdir())
    (expert / "pruned.safetensors").write_bytes(b"damaged")
    (expert / "stages/finetune.json").unlink()
    head = copied / "fused/3/head.safetensors"
    head.unlink()

    run(GIVEN, copied)

    assert products(copied) == products(whole)
    assert lasting(copied) == lasting(whole)


def test_a_foreign_expert_is_an_error_that_names_it(copied: Path) -> None:
    one, other, *_ = sorted((copied / "experts").iterdir())
    for kind in ("json", "safetensors"):
        shutil.copy(one / f"pruned.{kind}", other / f"pruned.{kind}")
    named = [
        folder
        for folder in (copied / "fused").iterdir()
        if f"{other.name}/pruned" in (folder / "fusion.json").read_text()
    ]

    for folder in named:
        with pytest.raises(
            ArtifactError, match=rf"expert \d: .*{other.name}/pruned.*not the file"
        ):
            infer(folder)
    assert named


def test_other_devices_keep_the_experts_that_they_share(copied: Path) -> None:
    there = {folder: folder.stat().st_mtime_ns for folder in copied.glob("experts/*/pruned.*")}
    changed = GIVEN | {"method": GIVEN["method"] | {"devices": [3]}}
    with pytest.raises(ConfigError, match=r"method\.devices: \[2, 3\] there, \[3\] now"):
        run(changed, copied)

    report = run(changed, copied, fresh_search=True)

    assert [fusion["devices"] for fusion in report["fusions"]] == [3]
    assert len(list((copied / "experts").iterdir())) == 3
    assert [folder.name for folder in (copied / "fused").iterdir()] == ["3"]
    left = {file: when for file, when in there.items() if file.exists()}
    assert len(left) == 6
    assert all(file.stat().st_mtime_ns == when for file, when in left.items())
    # And what one network is made of does not stay behind, or is taken for it.
    alone = GIVEN | {"method": {"name": "papm", "params_reduction": 0.4}}
    run(alone, copied, fresh_search=True)
    assert not (copied / "experts").exists()
    assert not (copied / "fused").exists()
    assert (copied / "pruned.json").is_file()
    run(GIVEN, copied, fresh_search=True, until="group")
    assert not (copied / "pruned.json").exists()


def test_killed_in_every_stage_it_goes_on_and_ends_the_same(
    server: Any, one: Path, tmp_path: Path
) -> None:
    for number, stage in enumerate(ENSEMBLE_STAGES):
        before = set(ENSEMBLE_STAGES[:number])
        if stage == "report":
            # An expert's report has the same name, and is behind.
            assert server.run(ONE, tmp_path, until="infer") == 0
        assert server.run(ONE, tmp_path, f"stage {stage}", 1) == -signal.SIGKILL
        assert {file.stem for file in (tmp_path / "stages").glob("*")} == before
    assert server.run(ONE, tmp_path) == 0

    assert products(tmp_path) == products(one)
    assert lasting(tmp_path) == lasting(one)


def test_killed_at_random_it_ends_the_same(server: Any, one: Path, tmp_path: Path) -> None:
    drawn, killed = random.Random(0), 0
    most = {"step": 12, "before a rename": 25, "after a rename": 25}
    for _ in range(12):
        event = drawn.choice(list(most))
        # What is measured last takes long, and was killed above.
        if server.run(ONE, tmp_path, event, drawn.randrange(1, most[event]), until="fuse") == 0:
            break
        killed += 1
    assert server.run(ONE, tmp_path, until="fuse") == 0

    assert killed >= 6
    assert products(tmp_path) == products(one)
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"method": GIVEN["method"] | {"devices": 11}},
            r"method\.devices: got 11, but digits has",
        ),
        ({"model": {"name": "squeezenet1_1"}}, r"expected a last Linear layer"),
        ({"model": {"name": f"{__name__}:Smooth"}}, r"no channel group has a ReLU"),
        (
            {"method": {"name": "papm_split", "params_reduction": 0.999999}},
            r"cannot be reached",
        ),
        (
            {"method": GIVEN["method"] | {"inference": {"devices": ["meta"]}}},
            r"method\.inference\.devices: expected auto, cpu, cuda or cuda:N, got 'meta'",
        ),
    ],
    ids=["devices", "head", "no ReLU", "budget", "places"],
)
def test_what_cannot_work_is_refused_before_any_training(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FastpruneError, match=message):
        run(GIVEN | changed, tmp_path / "run")

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"finetune": TRAIN | {"focus": {"classes": [1]}}}, r"finetune\.focus: each network"),
        ({"data": GIVEN["data"] | {"validation": 0}}, r"data\.validation: got 0"),
        ({"method": {"name": "papm_split", "devices": 1}}, r"method\.devices"),
        ({"method": {"name": "papm_split", "devices": [3, 3]}}, r"different numbers of devices"),
        ({"method": {"name": "papm_split"}}, r"method\.params_reduction: expected how much"),
        (
            {"method": GIVEN["method"] | {"inference": {"devices": ["cpu", "cpu"]}}},
            r"method\.inference\.devices: expected one for all experts",
        ),
    ],
)
def test_wrong_options_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(GIVEN | changed)


def test_what_another_configuration_left_is_not_taken_for_its_own(
    copied: Path, tmp_path: Path
) -> None:
    changed = GIVEN | {"method": GIVEN["method"] | {"devices": 4}}
    run(changed, copied, fresh_search=True, until="group")

    with pytest.raises(ConfigError, match="not finished, report is next"):
        compare([copied], tmp_path / "compared")
    assert (copied / "fused/2/fusion.json").is_file()
    assert CliRunner().invoke(app, ["infer", str(copied)]).exit_code == 2


def test_experts_without_test_images_have_no_accuracy_of_their_own(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((whole / "report.json").read_text())
    report["experts"][0] |= {"focus_top1": None, "focus_top1_before": None}
    print_ensemble_report(report)

    name = report["classes"][report["experts"][0]["classes"][0]]
    lines = [line.split("\u2502") for line in capsys.readouterr().out.splitlines()]
    row = next(cells for cells in lines if len(cells) == 9 and cells[1].strip().startswith(name))
    assert [cell.strip() for cell in row[-3:-1]] == ["", ""]


def test_the_groups_of_its_experts_are_not_overwritten(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--similarity: got covariance"):
        group_run(copied, "covariance", quiet=True)

    assert group_run(copied, "covariance", tmp_path / "other", quiet=True).grouping
    assert group_run(copied, quiet=True).run == copied
    run(GIVEN, copied)


def test_it_is_compared_by_a_row_for_each_number_of_devices(whole: Path, tmp_path: Path) -> None:
    found = compare([whole], tmp_path)
    report = json.loads((whole / "report.json").read_text())

    assert [row.variant for row in found.runs] == ["2 devices", "3 devices"]
    assert any("experts of all devices together" in note for note in found.notes)
    assert [row.top1_after for row in found.runs] == [
        fusion["test"]["top1"] for fusion in report["fusions"]
    ]
    first = [
        expert for expert in report["experts"] if expert["run"] in report["fusions"][0]["experts"]
    ]
    assert found.runs[0].macs == sum(expert["cost"]["macs"] for expert in first)


def test_the_commands_fuse_and_infer(one: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(one, tmp_path / "copied"))

    def call(*words: str) -> Any:
        result = CliRunner().invoke(app, [*words, "--quiet", "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    (copied / "stages/fuse.json").unlink()
    shutil.rmtree(copied / "fused")
    fused = call("fuse", str(copied))
    assert [len(fusion["experts"]) for fusion in fused] == [2]

    once = call("infer", str(copied), "--repeats", "2", "--batch", "1")
    assert [found["devices"] for found in once] == [2]
    assert all(found["equal"] for found in once)
    assert "unpruned" in {row["part"] for row in once[0]["latency"]}

    experts = [str(copied / "experts" / name) for name in sorted(_names(copied, "2"))]
    (own,) = call(
        *("fuse", *experts, "--out", str(tmp_path / "own"), "--head-option", "epochs=1"),
        *("--device", "cpu"),
    )
    assert own["training"]["epochs"] == 1
    refused = CliRunner().invoke(app, ["fuse", str(copied), "--out", str(tmp_path / "x")])
    assert refused.exit_code == 2
    refused = CliRunner().invoke(app, ["infer", str(tmp_path)])
    assert refused.exit_code == 2
    refused = CliRunner().invoke(app, ["fuse", str(copied), "--device", "cpu"])
    assert refused.exit_code == 2


def test_on_digits_the_fused_network_is_as_good_as_its_baseline(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "configs" / "papm_split_quick_digits.yaml"
    short = ["model.options.depth=8", "baseline.epochs=10", "finetune.epochs=6"]
    inference = "method.inference={batches: [1], repeats: 2}"
    given = ["threads=1", *short, "method.head.epochs=30", inference]
    report = pipeline.run(load_config(file, given), tmp_path, quiet=True)
    full = report["cost"]["unpruned"]["params"]

    assert all(expert["cost"]["params"] <= 0.3 * full for expert in report["experts"])
    (fusion,) = report["fusions"]
    assert fusion["test"]["top1"] >= report["accuracy"]["baseline"]["top1"] - 2
    assert report["accuracy"]["baseline"]["top1"] > 96


def _names(folder: Path, devices: str) -> list[str]:
    fusion = json.loads((folder / "fused" / devices / "fusion.json").read_text())
    return [Path(expert["file"]).parent.name for expert in fusion["experts"]]
