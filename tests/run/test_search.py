"""Whole runs with a search: kills at random, a search begun anew, runs that stop on the way."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastprune.config import make_config
from fastprune.errors import BudgetError, ConfigError, FastpruneError, PlanError
from fastprune.files import TEMPORARY
from fastprune.run import pipeline
from fastprune.run.stages import STAGES

# A checkpoint after every step, so that a training can be killed anywhere and go on.
TRAIN = {"epochs": 1, "lr": 0.05, "precision": "fp32", "checkpoint_every": 0}
GIVEN: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {
        "name": "digits",
        "train_limit": 96,
        "test_limit": 40,
        "batch_size": 32,
        "validation": 40,
    },
    "baseline": TRAIN,
    "method": {
        "name": "abc",
        "food_number": 3,
        "max_cycle": 2,
        "food_limit": 1,
        "calfitness_epoch": 2,
        "fitness": {key: value for key, value in TRAIN.items() if key != "epochs"},
    },
    "finetune": TRAIN,
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}
RACING = GIVEN | {"method": GIVEN["method"] | {"racing": True, "order": "published"}}
EVOLUTION = {key: value for key, value in GIVEN.items() if key != "baseline"} | {
    "model": {"name": "resnet20_cifar", "options": {"depth": 8, "shortcut": "B"}},
    "method": {
        "name": "metapruning",
        "pruningnet": TRAIN | {"epochs": 2},
        "population": 4,
        "select_num": 2,
        "mutation_num": 2,
        "crossover_num": 1,
        "iterations": 4,
        "batches": 1,
        "weights": "generated",
        "racing": True,
    },
    "prune": {"budget": {"macs": 0.5}},
}
ONE_SHOT = GIVEN | {"method": "one_shot", "prune": {"budget": {"macs": 0.5}}}
MEASURED = ("latency", "seconds", "kills", "warnings", "command", "directory")
RESULTS = (
    "baseline.safetensors",
    "plan.json",
    "inherited.safetensors",
    "finetune_start.safetensors",
    "pruned.safetensors",
    "pruned.json",
)


def run(given: dict[str, Any], folder: Path, **how: Any) -> dict[str, Any]:
    return pipeline.run(make_config(given), folder, quiet=True, **how)


def trials(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return sorted(
        ({key: value for key, value in row.items() if key != "seconds"} for row in rows),
        key=lambda row: row["number"],
    )


def lasting(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    return {key: value for key, value in report.items() if key not in MEASURED}


def hold_the_same(folder: Path, whole: Path) -> None:
    assert trials(folder) == trials(whole)
    for name in RESULTS:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert lasting(folder) == lasting(whole)
    assert not list(folder.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize(
    ("given", "kills"),
    [(GIVEN, 10), (RACING, 5), (EVOLUTION, 5)],
    ids=["batched", "published, racing", "evolution"],
)
def test_killed_ten_times_at_random_in_the_search_it_ends_the_same(
    server: Any, given: dict[str, Any], kills: int, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert server.run(given, whole) == 0
    drawn = random.Random(given["method"].get("order", ""))
    killed: Counter[str] = Counter()
    for again in range(10):
        folder = tmp_path / str(again)
        for _ in range(12):
            event = drawn.choice(["step", "before a rename", "after a rename", "time"])
            count = drawn.randrange(200, 1500) if event == "time" else drawn.randrange(1, 16)
            searching = (folder / "stages/baseline.json").is_file()
            if server.run(given, folder, event, count) == 0:
                break
            if searching and not (folder / "stages/plan.json").is_file():
                killed[event] += 1
            if sum(killed.values()) >= kills:
                break
        assert server.run(given, folder) == 0
        hold_the_same(folder, whole)
        if sum(killed.values()) >= kills:
            break

    assert sum(killed.values()) >= kills
    assert len(killed) >= 2


def test_a_kill_is_a_kill(server: Any, tmp_path: Path) -> None:
    assert server.run(GIVEN, tmp_path, "time", 1) == -signal.SIGKILL


def test_what_a_search_leaves_stays_when_it_is_run_again(tmp_path: Path) -> None:
    report = run(GIVEN, tmp_path)
    rows = trials(tmp_path)
    best = max(rows, key=lambda row: (row["fitness"], -row["number"]))

    assert report["notes"]["code"] == best["code"]
    assert report["notes"]["fitness"] == best["fitness"]
    assert report["widths"] == best["widths"]
    assert report["notes"]["candidates"] == len(rows)
    assert {row["phase"] for row in rows} >= {"initial", "employed", "onlooker"}
    for name in ("search.png", "channels.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # What fine-tuning begins with is the candidate as it was trained.
    start, inherited = (
        (tmp_path / name).read_bytes()
        for name in ("finetune_start.safetensors", "inherited.safetensors")
    )
    assert start == inherited
    # And the same again does nothing.
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert run(GIVEN, tmp_path) == report
    assert {p.name for p, s in stamps.items() if p.stat().st_mtime_ns != s} <= {"lock"}


def test_several_at_a_time_find_the_same(tmp_path: Path) -> None:
    # One thread each, as the run's own.
    run(GIVEN, tmp_path / "one")
    run(GIVEN | {"method": GIVEN["method"] | {"parallel": 2}}, tmp_path / "two")

    assert trials(tmp_path / "two") == trials(tmp_path / "one")
    for name in RESULTS:
        both = [(tmp_path / folder / name).read_bytes() for folder in ("one", "two")]
        assert both[0] == both[1], name


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_until_a_stage_it_goes_and_from_there_on(stage: str, tmp_path: Path) -> None:
    given = GIVEN | {"method": {"name": "abc", "code": "5 5"}}
    found = run(given, tmp_path, until=stage)

    assert found["stage"] == stage
    done = [s for s in STAGES if (tmp_path / f"stages/{s}.json").is_file()]
    assert done == list(STAGES[: STAGES.index(stage) + 1])
    stamp = (tmp_path / f"stages/{stage}.json").stat().st_mtime_ns
    report = run(given, tmp_path)
    assert report["notes"]["code"] == [5, 5]
    assert (tmp_path / f"stages/{stage}.json").stat().st_mtime_ns == stamp


def test_an_unknown_stage_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--until: unknown stage 'plann'; did you mean 'plan'"):
        run(GIVEN, tmp_path / "a", until="plann")
    assert not (tmp_path / "a").exists()


def test_a_search_begun_anew_keeps_the_baseline(tmp_path: Path) -> None:
    run(GIVEN, tmp_path, until="plan")
    first = trials(tmp_path)
    kept = {
        name: (tmp_path / name).stat().st_mtime_ns
        for name in ("baseline.safetensors", "stages/baseline.json")
    }

    def others_kept() -> bool:
        return all((tmp_path / name).stat().st_mtime_ns == at for name, at in kept.items())

    # The same options give the same again, all of it trained anew.
    begun = (tmp_path / "stages/plan.json").stat().st_mtime_ns
    run(GIVEN, tmp_path, until="plan", fresh_search=True)
    assert (tmp_path / "stages/plan.json").stat().st_mtime_ns != begun
    assert trials(tmp_path) == first
    assert others_kept()

    other = GIVEN | {
        "method": GIVEN["method"] | {"max_preserve": 4},
        "finetune": TRAIN | {"lr": 0.01},
        "prune": {"budget": {"macs": 0.7}},
    }
    with pytest.raises(ConfigError, match=r"holds a run of another configuration \(method\.max_p"):
        run(other, tmp_path)
    report = run(other, tmp_path, fresh_search=True)
    assert others_kept()
    assert max(k for row in trials(tmp_path) for k in row["code"]) <= 4
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["method"]["max_preserve"] == 4
    # And goes on by itself, as any other run.
    assert run(other, tmp_path) == report


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": {"name": "resnet20_cifar"}}, r"\(model\.name: "),
        ({"data": GIVEN["data"] | {"validation": 20}}, r"\(data\.validation: 40 there, 20 now\)"),
        ({"baseline": TRAIN | {"lr": 0.1}}, r"\(baseline\.lr: "),
        ({"seed": 1}, r"\(seed: 0 there, 1 now\)"),
    ],
)
def test_what_the_baseline_follows_from_cannot_change_with_the_search(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    run(GIVEN, tmp_path, until="baseline")

    with pytest.raises(ConfigError, match=expected):
        run(GIVEN | change, tmp_path, fresh_search=True)


@pytest.mark.parametrize(
    "change",
    [
        {"method": {"name": "abc", "code": "5 5 5"}},
        {"prune": {"budget": {"macs": 1e-3}}},
        {"prune": {"keep": ["*"]}},
        {
            "finetune": TRAIN | {"distill": {}, "early_stop": {}},
            "method": {"name": "abc", "code": [11, 1]},
        },
    ],
    ids=["code", "budget", "keep", "range"],
)
def test_what_is_refused_takes_no_searchs_place(change: dict[str, Any], tmp_path: Path) -> None:
    report = run(GIVEN, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}

    with pytest.raises(FastpruneError):
        run(GIVEN | change, tmp_path, fresh_search=True)
    assert before == {
        p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"
    }
    assert run(GIVEN, tmp_path) == report


def test_the_picture_of_a_search_is_of_its_own_trials(tmp_path: Path) -> None:
    run(GIVEN, tmp_path)
    picture = (tmp_path / "search.png").read_bytes()

    # The same plan comes out, so that no later stage has anything to do.
    run(GIVEN, tmp_path, fresh_search=True)
    assert (tmp_path / "search.png").is_file()
    # What somebody made of the copy beside the results is no matter.
    (tmp_path / "trials.jsonl").write_text("edited\n")
    (tmp_path / "report.json").unlink()
    run(GIVEN, tmp_path)
    assert len((tmp_path / "search.png").read_bytes()) == pytest.approx(len(picture), rel=0.1)


def test_trials_of_an_earlier_method_do_not_stay(tmp_path: Path) -> None:
    run(GIVEN, tmp_path)
    report = run(ONE_SHOT, tmp_path, fresh_search=True)

    assert not (tmp_path / "trials.jsonl").exists()
    assert not (tmp_path / "search.png").exists()
    assert (tmp_path / "channels.png").exists()
    assert "code" not in report["notes"]


def test_an_interrupted_search_begun_anew_begins_at_the_first_candidate(
    server: Any, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert server.run(GIVEN, whole) == 0
    shutil.copytree(whole, folder)
    (folder / "stages/plan.json").unlink()
    log = folder / "work/plan/trials.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    changed = json.loads(lines[0]) | {"fitness": 99.0}
    log.write_text(json.dumps(changed) + "\n" + lines[1])
    run(GIVEN, folder, fresh_search=True)

    hold_the_same(folder, whole)


@pytest.mark.parametrize(
    ("method", "prune", "error", "expected"),
    [
        ({"code": "5 5 5"}, {}, PlanError, r"expected 2 whole numbers .*; got 3$"),
        ({"code": "10 10"}, {}, PlanError, "keeps every channel"),
        ({"code": "9 9"}, {"budget": {"macs": 0.3}}, BudgetError, "over budget"),
        ({"units": "family"}, {}, PlanError, "no table of its own"),
        (
            {},
            {"budget": {"macs": 0.01}},
            BudgetError,
            r"budget: no code can meet it; got macs 0\.01",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_baseline_is_trained(
    method: dict[str, Any],
    prune: dict[str, Any],
    error: type[FastpruneError],
    expected: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=expected):
        run(GIVEN | {"method": GIVEN["method"] | method, "prune": prune}, tmp_path)
    assert not (tmp_path / "work/baseline/metrics.jsonl").exists()


def test_without_validation_images_it_is_refused_at_once(tmp_path: Path) -> None:
    given = GIVEN | {"data": GIVEN["data"] | {"validation": 0}}

    with pytest.raises(ConfigError, match=r"data\.validation: got 0, but method abc chooses by"):
        run(given, tmp_path)
    assert make_config(given | {"method": GIVEN["method"] | {"fitness_split": "test"}})
    assert make_config(given | {"method": {"name": "abc", "code": "5 5"}})
