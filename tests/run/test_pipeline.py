"""Whole runs on a tiny network and real digits: what they leave, and that nothing stops them."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import fastprune as fp
from fastprune.config import RunConfig, make_config
from fastprune.errors import BudgetError, ConfigError, FastpruneError
from fastprune.files import TEMPORARY
from fastprune.run import pipeline
from fastprune.run.stages import STAGES

# A checkpoint after every step, so that training can be killed anywhere and go on.
TRAIN = {"epochs": 2, "lr": 0.05, "checkpoint_every": 0}
GRADUAL: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {"name": "digits", "train_limit": 96, "test_limit": 40, "batch_size": 32},
    "baseline": TRAIN,
    "method": {"name": "one_shot", "iterations": 2, "finetune_between": 1},
    "prune": {"budget": {"macs": 0.5}},
    "finetune": TRAIN | {"distill": {}},
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}
SLIMMING = GRADUAL | {
    "baseline": None,
    "method": {"name": "slimming", "ratio": 0.5, "train": TRAIN, "strength": 0.01},
    "prune": {},
}
MASKED = GRADUAL | {
    "method": {"name": "slimming", "start": "baseline", "mode": "masked", "train": TRAIN},
}
SELECTED = SLIMMING | {"model": {"name": "preresnet164_cifar", "options": {"depth": 11}}}
SCRATCH = SLIMMING | {"method": SLIMMING["method"] | {"scratch": "B"}, "finetune": None}

# What differs from one repetition to the next.
MEASURED = ("latency", "seconds", "kills", "warnings", "command", "directory")


def config(given: dict[str, Any]) -> RunConfig:
    return make_config(given)


def lasting(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in MEASURED}


def run(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return pipeline.run(config(given), folder, quiet=True)


@pytest.mark.parametrize(
    "given",
    [GRADUAL, SLIMMING, SELECTED, MASKED, SCRATCH],
    ids=["gradual", "slimming", "selected", "masked", "scratch"],
)
def test_a_run_leaves_a_smaller_network_that_loads(given: dict[str, Any], tmp_path: Path) -> None:
    report = run(given, tmp_path)
    small = fp.load(tmp_path)
    cost = report["cost"]

    assert cost["pruned"]["macs"] < 0.9 * cost["unpruned"]["macs"]
    assert sum(p.numel() for p in small.parameters()) == cost["pruned"]["params"]
    assert report["oracle"]["equal"]
    assert report["oracle"]["relative_error"] < 1e-12
    assert report["accuracy"]["finetuned"]["top1"] >= 0
    assert (report["accuracy"]["baseline"] is None) == (given["baseline"] is None)
    assert report == json.loads((tmp_path / "report.json").read_text())
    for limit in report["budget"]:
        assert limit["reached"] <= limit["limit"]
    plan = fp.PruningPlan.from_json(json.loads((tmp_path / "plan.json").read_text()))
    assert report["widths"] == plan.widths()


def test_a_run_without_fine_tuning_ends_with_what_pruning_left(tmp_path: Path) -> None:
    report = run(GRADUAL | {"finetune": None, "method": "one_shot"}, tmp_path)

    assert report["accuracy"]["finetuned"] is None
    cut, product = (
        tmp_path / name for name in ("finetune_start.safetensors", "pruned.safetensors")
    )
    assert cut.read_bytes() == product.read_bytes()


def test_the_same_again_does_nothing_and_says_the_same(tmp_path: Path) -> None:
    first = run(GRADUAL, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = run(GRADUAL, tmp_path)

    assert again == first
    changed = {p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp}
    assert changed <= {"lock"}


def test_the_page_for_people_is_left_after_the_report_and_is_in_no_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(GRADUAL, tmp_path)
    page = tmp_path / "report.html"
    records = {file: file.read_bytes() for file in (tmp_path / "stages").iterdir()}
    written = page.read_bytes()

    assert b"not finished" not in written
    assert not any(b"report.html" in content for content in records.values())
    page.unlink()
    run(GRADUAL, tmp_path)
    assert page.read_bytes() == written
    assert {file: file.read_bytes() for file in (tmp_path / "stages").iterdir()} == records
    # A report that is made again leaves none of before.
    (tmp_path / "stages/report.json").unlink()
    page.write_text("of before")
    metrics = tmp_path / "work/baseline/metrics.jsonl"
    metrics.write_text("{}\n" + metrics.read_text())
    pipeline.run(config(GRADUAL), tmp_path)
    assert not page.exists()
    assert (
        f"{page} is not written: {metrics}: line 1: not an epoch of a training; "
        f"then: fastprune report {tmp_path}" in capsys.readouterr().err.replace("\n", "")
    )


def test_two_runs_of_one_configuration_are_the_same(tmp_path: Path) -> None:
    reports = [run(GRADUAL, tmp_path / name) for name in ("a", "b")]

    assert lasting(reports[0]) == lasting(reports[1])
    names = ("baseline", "pruned", "finetune_start")
    for name in (f"{n}.safetensors" for n in names):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    first = run(GRADUAL, tmp_path)
    good = (tmp_path / "pruned.safetensors").read_bytes()
    for name in ("pruned.safetensors", "baseline.safetensors", "plan.json"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-7])
        again = run(GRADUAL, tmp_path)

        assert lasting(again) == lasting(first)
        assert (tmp_path / "pruned.safetensors").read_bytes() == good


def test_a_damaged_checkpoint_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(GRADUAL, tmp_path)
    stage = tmp_path / "work" / "finetune"
    for file in stage.glob("*.pt"):
        file.write_bytes(file.read_bytes()[:-9])
    (tmp_path / "stages" / "finetune.json").unlink()
    again = pipeline.run(config(GRADUAL), tmp_path)

    assert "damaged" in capsys.readouterr().err or "cut off" in capsys.readouterr().err
    assert lasting(again) == lasting(first)


def test_an_impossible_budget_is_refused_before_training(tmp_path: Path) -> None:
    given = GRADUAL | {"prune": {"budget": {"macs": 0.001}}}

    with pytest.raises(
        BudgetError, match=r"prune\.budget\.macs: 0\.001 .*cannot be reached; .* to"
    ):
        run(given, tmp_path)
    assert not (tmp_path / "baseline.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            GRADUAL | {"finetune": TRAIN | {"capture": True, "precision": "fp16"}},
            [
                "finetune.precision: fp16 needs a GPU, but the device is cpu; use auto, fp32 or "
                "bf16",
                "finetune.capture: the device is cpu, and CUDA graphs need a GPU; use auto or "
                "false",
            ],
        ),
        (
            SLIMMING
            | {"method": SLIMMING["method"] | {"train": TRAIN | {"precision": "fp16"}}}
            | {"finetune": TRAIN | {"keep": "best"}, "data": GRADUAL["data"] | {"validation": 0}},
            [
                "method.train.precision: fp16 needs a GPU, but the device is cpu; use auto, fp32 "
                "or bf16",
                "finetune.keep: looks at validation images, but data.validation is 0; set it "
                "above 0",
            ],
        ),
        (
            GRADUAL | {"baseline": TRAIN | {"distill": {}}},
            ["baseline.distill: needs the unpruned network to learn from"],
        ),
    ],
)
def test_what_a_recipe_cannot_have_here_is_refused_before_any_work(
    given: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(given, tmp_path / "a")

    assert list(caught.value.problems) == expected
    assert not (tmp_path / "a").exists()


def test_a_python_that_torch_cannot_compile_on_is_told_of_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99\nmore")

    monkeypatch.setattr(torch, "compile", refuse)
    expected = (
        r"^finetune\.compile: torch cannot compile here: torch\.compile is not supported on "
        r"Python 3\.99; use false$"
    )
    with pytest.raises(ConfigError, match=expected):
        run(GRADUAL | {"finetune": TRAIN | {"compile": True}}, tmp_path / "a")


def test_what_a_stage_is_made_from_is_noticed_when_it_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text("from fastprune.testing.methods import TinyResidual as network\n")
    given = GRADUAL | {"model": {"name": f"{own}:network"}}
    run(given, tmp_path / "a")
    pipeline.run(config(given), tmp_path / "a")
    assert "baseline: done before" in capsys.readouterr().err
    own.write_text(own.read_text() + "\n# another\n")
    pipeline.run(config(given), tmp_path / "a")

    assert "baseline: again, since its inputs have changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"device": "cuda:99"}, "device: got 'cuda:99', but there"),
        ({"model": {"name": "resnet20_cifer"}}, "did you mean 'resnet20_cifar'"),
        ({"data": {"name": "digit"}}, "did you mean 'digits'"),
        ({"data": {"name": "cifar10", "root": "nowhere"}}, "nowhere"),
        (
            {"model": {"name": "resnet20_cifar", "num_classes": 7}},
            "model.num_classes: resnet20_cifar has 7 outputs, the dataset 10 classes",
        ),
        (
            {"model": {"name": "resnet20_cifar", "weights": "none.pt"}, "baseline": None},
            "none.pt",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(FastpruneError) as caught:
        run(GRADUAL | change, tmp_path / "a")

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "w.pt")
    given = GRADUAL | {
        "model": {"name": "resnet20_cifar", "weights": str(tmp_path / "w.pt")},
        "baseline": None,
    }

    with pytest.raises(FastpruneError, match=r"of another network: conv1\.weight: expected"):
        run(given, tmp_path / "a")


def test_a_second_configuration_does_not_overwrite_a_run(tmp_path: Path) -> None:
    run(GRADUAL | {"finetune": None, "method": "one_shot", "baseline": TRAIN}, tmp_path)

    with pytest.raises(ConfigError, match=r"finetune\.epochs|finetune: None there"):
        run(GRADUAL | {"method": "one_shot"}, tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(
    server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], Path]:
    """The directory of a run that nobody disturbed, one for each configuration."""
    done: dict[str, Path] = {}

    def find(given: dict[str, Any]) -> Path:
        key = json.dumps(given)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("whole")
            assert server.run(given, done[key]) == 0
        return done[key]

    return find


@pytest.mark.parametrize(
    ("given", "event", "counts"),
    [
        # At every file that a run renames to its name, a later one each time.
        (GRADUAL, "before a rename", range(1, 40)),
        (GRADUAL, "after a rename", range(1, 40)),
        (SLIMMING, "before a rename", range(1, 40)),
        (MASKED, "after a rename", range(1, 40)),
        # In the middle of epochs. There are 3 steps an epoch and 15 in all.
        (GRADUAL, "step", [2, 1, 3]),
    ],
    ids=["gradual, before", "gradual, after", "slimming, before", "masked, after", "steps"],
)
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    server: Any,
    uninterrupted: Callable[[dict[str, Any]], Path],
    given: dict[str, Any],
    event: str,
    counts: Sequence[int],
    tmp_path: Path,
) -> None:
    whole = uninterrupted(given)
    kills: list[str] = []
    for count in itertools.cycle(counts):
        code = server.run(given, tmp_path, event, count if len(kills) < 40 else 0)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills.append(next(s for s in STAGES if not (tmp_path / f"stages/{s}.json").is_file()))

    assert len(kills) < 40, "it does not get on"
    expected = {"plan", "finetune"} | ({"baseline"} if given["baseline"] else set())
    assert expected <= set(kills)
    for name in ("pruned.safetensors", "pruned.json", "plan.json", "finetune_start.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    reports = [json.loads((folder / "report.json").read_text()) for folder in (tmp_path, whole)]
    assert lasting(reports[0]) == lasting(reports[1])
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_a_stage_it_goes_on_and_ends_the_same(
    server: Any, uninterrupted: Callable[[dict[str, Any]], Path], stage: str, tmp_path: Path
) -> None:
    whole = uninterrupted(GRADUAL)

    assert server.run(GRADUAL, tmp_path, f"stage {stage}", 1) == -signal.SIGKILL
    done = [s for s in STAGES if (tmp_path / f"stages/{s}.json").is_file()]
    assert done == list(STAGES[: STAGES.index(stage)])
    assert server.run(GRADUAL, tmp_path) == 0
    for name in ("pruned.safetensors", "pruned.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
