"""Whole runs of lottery tickets: kills at random, and plans that keep every channel."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fastprune import artifact
from fastprune.config import make_config
from fastprune.errors import ConfigError
from fastprune.files import TEMPORARY
from fastprune.methods._states import read_states
from fastprune.run import pipeline

# A checkpoint after every step, so that a training can be killed anywhere and go on.
TRAIN = {"epochs": 2, "lr": 0.05, "precision": "fp32", "checkpoint_every": 0}
GIVEN: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {
        "name": "digits",
        "train_limit": 96,
        "test_limit": 40,
        "batch_size": 32,
        "validation": 40,
    },
    "method": {
        "name": "lottery",
        "variant": "imp",
        "pruning_times": 2,
        "rate": 0.4,
        "rewind_epoch": 1,
        "train": TRAIN,
    },
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}
PENALISED = GIVEN | {
    "method": GIVEN["method"]
    | {
        "variant": "rsst",
        "criterion": "saliency",
        "schedule": "x",
        "reg_granularity_prune": 0.2,
        "dynamic_target": 50.0,
        "train": TRAIN | {"distill": {}},
    }
}
MEASURED = ("latency", "seconds", "kills", "warnings", "command", "directory")


def run(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return pipeline.run(make_config(given), folder, quiet=True)


def states(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.to_dict().items() if name != "seconds"}
        for record in read_states(folder / "states.jsonl")
    ]


def hold_the_same(folder: Path, whole: Path) -> None:
    assert states(folder) == states(whole)
    weights = sorted(path.relative_to(whole) for path in whole.glob("states/*.safetensors"))
    assert len(weights) == 6
    for name in (*weights, "rewind.safetensors", "plan.json", "pruned.safetensors", "pruned.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    reports = [json.loads((at / "report.json").read_text()) for at in (folder, whole)]
    one, other = ({k: v for k, v in r.items() if k not in MEASURED} for r in reports)
    assert one == other
    assert not list(folder.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("given", [GIVEN, PENALISED], ids=["imp", "rsst"])
def test_killed_at_random_in_its_states_it_ends_the_same(
    server: Any, given: dict[str, Any], tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert server.run(given, whole) == 0
    drawn = random.Random(given["method"]["variant"])
    most = {"step": 8, "before a rename": 20, "after a rename": 20, "time": 900}
    killed: Counter[str] = Counter()
    for again in range(4):
        folder = tmp_path / str(again)
        event, count = "step", 1
        while server.run(given, folder, event, count) != 0:
            assert not (folder / "stages/plan.json").is_file() or event != "step"
            killed[event] += 1
            event = drawn.choice(list(most))
            count = drawn.randrange(300 if event == "time" else 1, most[event])
        hold_the_same(folder, whole)
        if sum(killed.values()) >= 8:
            break

    assert sum(killed.values()) >= 8
    assert len(killed) >= 3


@pytest.mark.parametrize("variant", ["imp", "rst"])
def test_zeros_are_not_fine_tuned_away(variant: str) -> None:
    given = GIVEN | {"method": GIVEN["method"] | {"variant": variant}, "finetune": TRAIN}
    with pytest.raises(ConfigError, match=r"finetune: weights that method lottery holds at zero"):
        make_config(given)
    make_config(given | {"method": GIVEN["method"] | {"variant": "refill"}})


def test_a_plan_that_keeps_every_channel_is_a_result(tmp_path: Path) -> None:
    report = run(GIVEN | {"method": GIVEN["method"] | {"pruning_times": 1}}, tmp_path)

    total = 2 * 8 * 8 * 9
    assert report["notes"]["remaining_weights"] == int(total * 0.6)
    assert report["widths"] == {"stem": 8, "conv1": 8}
    small = artifact.load(tmp_path / "pruned")
    weights = [small.get_parameter(f"conv{number}.weight") for number in (1, 2)]
    assert sum(int(weight.count_nonzero()) for weight in weights) == int(total * 0.6)
    last = artifact.load_state(tmp_path / "states/state-01.safetensors")
    assert all(torch.equal(t, last[name]) for name, t in small.state_dict().items())
    # And the same again does nothing.
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert run(GIVEN | {"method": GIVEN["method"] | {"pruning_times": 1}}, tmp_path) == report
    assert {p.name for p, s in stamps.items() if p.stat().st_mtime_ns != s} <= {"lock"}


def test_refill_may_be_fine_tuned(tmp_path: Path) -> None:
    given = GIVEN | {
        "method": GIVEN["method"] | {"variant": "refill"},
        "finetune": TRAIN | {"distill": {}},
    }
    report = run(given, tmp_path)
    records = read_states(tmp_path / "states.jsonl")

    assert report["widths"] == records[-1].widths
    assert sum(records[-1].widths.values()) < 16
    small = artifact.load(tmp_path / "pruned")
    assert sum(p.numel() for p in small.parameters()) == records[-1].params
