"""Runs on several ranks against one process: gloo on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rank_processes import Ranks

from fastprune.config import make_config
from fastprune.run import pipeline

WORK = Path(__file__).with_name("rank_runs.py")
TINY: dict[str, Any] = {
    "model": {"name": "resnet20_cifar", "options": {"depth": 8, "shortcut": "B"}},
    "data": {
        "name": "digits",
        "train_limit": 96,
        "test_limit": 40,
        "batch_size": 32,
        "validation": 40,
    },
    "baseline": {"epochs": 1, "lr": 0.05},
    "finetune": {"epochs": 1, "lr": 0.05},
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}
COLONY = {"name": "abc", "food_number": 3, "max_cycle": 1}
METHODS: dict[str, dict[str, Any]] = {
    "trained": {"method": {**COLONY, "calfitness_epoch": 2, "racing": True}},
    "shared": {
        "method": {
            **COLONY,
            "calfitness_epoch": 0,
            "evaluator": "shared",
            "recalibrate_batches": 2,
        }
    },
    "raced": {
        "baseline": None,
        "prune": {"budget": {"macs": 0.6}},
        "method": {
            "name": "metapruning",
            "population": 8,
            "select_num": 3,
            "mutation_num": 4,
            "crossover_num": 3,
            "iterations": 2,
            "batches": 2,
            "racing": True,
            "precision": "fp32",
        },
    },
    "apoz": {"method": {"name": "apoz"}, "prune": {"budget": {"macs": 0.6}}},
}
_OF_THE_RUN = ("seconds", "common")
"""Of a candidate: times, and steps that were shared with others of its rank."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baselines and a pruningnet, made by one process."""
    folder = tmp_path_factory.mktemp("begun")
    for name, given in METHODS.items():
        if name == "raced":
            first = {**given["method"], "iterations": 1, "pruningnet": {"epochs": 1}}
            pruningnet = make_config(TINY | given | {"method": first})
            pipeline.run(pruningnet, folder / "pruningnet", until="plan", quiet=True)
        else:
            pipeline.run(make_config(TINY | given), folder / name, until="baseline", quiet=True)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_ranks_find_what_one_process_finds(
    name: str, ranks: Ranks, begun: Path, tmp_path: Path
) -> None:
    """Candidates, fitness, plan and the best one's weights, to the byte."""
    given = TINY | METHODS[name]
    if name == "raced":
        given["method"] = {**given["method"], "earlier": str(begun / "pruningnet")}
    found = {}
    for world in (1, 2, 4):
        folder = tmp_path / str(world)
        if name != "raced":
            shutil.copytree(begun / name, folder)
        ranks.run(world, WORK, "run", given, str(folder), "plan")
        found[world] = made(folder)
    assert found[1]["plan.json"]
    assert found[2] == found[1]
    assert found[4] == found[1]


def made(folder: Path) -> dict[str, Any]:
    kept = {
        name: (folder / name).read_bytes() if (folder / name).exists() else None
        for name in ("plan.json", "inherited.safetensors")
    }
    trials = folder / "trials.jsonl"
    lines = trials.read_text().splitlines() if trials.exists() else []
    rows = [{k: v for k, v in json.loads(x).items() if k not in _OF_THE_RUN} for x in lines]
    return {**kept, "trials": rows}


@pytest.mark.parametrize(
    ("fails", "on", "timeout", "code", "said"),
    [
        ("data", 0, 60, 2, "fastprune: error: data: one rank's own trouble"),
        ("data", 1, 60, 2, "fastprune: error: data: one rank's own trouble"),
        ("bug", 1, 60, 1, "ZeroDivisionError"),
        ("kill", 1, 60, 2, "fastprune: error: baseline: rank 0 of 2 lost another rank"),
        ("hang", 1, 3, 2, "fastprune: error: baseline: rank 0 of 2 waited 3 s for the others"),
    ],
)
def test_an_error_of_one_rank_ends_all_and_is_told_once(
    fails: str, on: int, timeout: int, code: int, said: str, ranks: Ranks, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY | METHODS["trained"]))
    arguments = ["run", str(config), "--out", str(tmp_path / "run"), "--timeout", str(timeout)]
    found = ranks.run(2, WORK, "command", arguments, fails, on, started=False, expected=("any",))
    heard = [one for one in found if one is not None]
    assert len(heard) == (2 if fails in ("data", "bug") else 1)
    assert {one["code"] for one in heard} == {code}
    told = [line for one in heard for line in one["err"].splitlines() if "error" in line]
    told += [one["bug"] for one in heard if one["bug"]]
    assert len(told) == 1
    assert said in told[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("baseline.lr=high", "baseline.lr: expected a valid number"),
        ("device=cuda:0", "device: got 'cuda:0', and 2 ranks have a GPU each"),
        ("method.name=abd", "method: unknown method 'abd'"),
    ],
)
def test_what_is_wrong_from_the_beginning_is_told_once(
    override: str, said: str, ranks: Ranks, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY | METHODS["trained"]))
    arguments = ["run", str(config), override, "--out", str(tmp_path / "run")]
    found = ranks.run(2, WORK, "command", arguments, started=False, expected=("any",))
    assert [one["code"] for one in found] == [2, 2]
    told = "".join(one["err"] for one in found)
    assert told.count("error:") == 1
    assert said in told
    assert not (tmp_path / "run").exists()


def test_a_folder_that_ranks_do_not_share_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    found = ranks.run(2, WORK, "apart", str(tmp_path), expected=("RankError", "ToldElsewhere"))
    assert {one["error"] for one in found} == {"RankError", "ToldElsewhere"}
    told = next(one["said"] for one in found if one["error"] == "RankError")
    assert f"--out {tmp_path}" in told
    assert "is not seen by rank 1" in told


def test_a_whole_run_ends_on_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    """One rank writes and speaks; run again it does nothing more."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY | METHODS["shared"]))
    arguments = ["run", str(config), "--out", str(tmp_path / "run"), "--json"]
    first, second = ranks.run(2, WORK, "command", arguments, started=False)
    assert (first["code"], second["code"]) == (0, 0)
    assert (second["out"], second["err"]) == ("", "")
    report = json.loads(first["out"])
    assert report["notes"]["candidates"] > 0
    again, _ = ranks.run(2, WORK, "command", arguments, started=False)
    assert json.loads(again["out"]) == report
    assert again["err"].count("done before") == 5
