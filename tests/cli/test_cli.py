"""The commands as users type them; most in this process, some as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_calls import TINY, answer, call, refusal

import fastprune as fp


def test_run_prints_its_tables_on_stdout_and_its_progress_on_stderr(
    config: Path, tmp_path: Path
) -> None:
    code, out, err = call("run", config, "prune.budget.macs=0.6", "--out", tmp_path / "a")

    assert code == 0
    for expected in (
        "MACs",
        "accuracy",
        "top-1",
        "latency",
        "narrowest",
        "not prunable",
        "saved:",
    ):
        assert expected in out
    assert err.splitlines()[0] == "fastprune: baseline"
    report = json.loads((tmp_path / "a/report.json").read_text())
    assert 0.5 < report["cost"]["kept"]["macs"] <= 0.6
    assert report["latency"]["unpruned_ms"] > 0


def test_quiet_is_quiet_and_json_is_json(config: Path, tmp_path: Path) -> None:
    code, out, err = call("run", config, "--out", tmp_path / "a", "--quiet", "--json")

    assert (code, err) == (0, "")
    assert json.loads(out)["accuracy"]["pruned"]["top1"] >= 0


def test_run_goes_to_a_folder_named_after_the_configuration(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = answer("run", config)

    assert (tmp_path / "runs/tiny/pruned.safetensors").is_file()
    assert report["directory"] == "runs/tiny"


def test_another_configuration_needs_fresh(config: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "a", "--quiet")
    call("run", config, *out)

    err = refusal("run", config, "seed=1", *out)
    assert "(seed: 0 there, 1 now); use --fresh" in err
    code, _, _ = call("run", config, "seed=1", "--fresh", *out)
    assert code == 0


def test_everything_wrong_with_a_configuration_is_said_a_line_each(config: Path) -> None:
    err = refusal("run", config, "prune.round_too=3", "sede=1")

    assert err.splitlines() == [
        f"fastprune: error: {config}: prune.round_too: unknown key; did you mean 'round_to'?",
        f"fastprune: error: {config}: sede: unknown key; did you mean 'seed'?",
    ]


def test_prune_needs_no_configuration(tmp_path: Path) -> None:
    report = answer(
        "prune",
        TINY,
        "--baseline-epochs=1",
        "--criterion=l2",
        "--macs=0.5",
        "--params=0.9",
        "--keep=stem",
        "--epochs=1",
        "--out",
        tmp_path,
        "--quiet",
    )
    kept = report["cost"]["kept"]

    assert kept["macs"] <= 0.5
    assert kept["params"] <= 0.9
    assert report["widths"]["conv1"] < 8
    assert "stem" not in report["widths"]
    assert report["accuracy"]["finetuned"] is not None
    assert fp.load(tmp_path) is not None
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["method"]["criterion"] == "l2"
    assert written["finetune"]["schedule"] == "cosine"


def test_prune_says_what_it_lacks() -> None:
    err = refusal("prune", "resnet20_cifar", "--epochs=0", "--ranking=glob")

    assert "prune.ranking: expected 'global', 'layer' or 'isomorphic'; got 'glob'" in err
    err = refusal("prune", "resnet20_cifar", "--epochs=0")
    assert "error: --macs: expected a budget" in err
    assert "error: --weights: expected the network's weights" in err


def test_lists() -> None:
    everything = answer("list")

    assert set(everything) == {"models", "datasets", "criteria", "methods"}
    assert "resnet56_cifar" in {row["name"] for row in everything["models"]}
    assert {row["name"] for row in everything["methods"]} >= {"one_shot", "slimming"}
    assert all(row["summary"] for rows in everything.values() for row in rows)
    code, out, _ = call("list", "criteria")
    assert code == 0
    assert "taylor" in out
    assert "did you mean 'models'" in refusal("list", "model")


def test_config_prints_what_it_resolves_and_the_schema(config: Path) -> None:
    code, out, _ = call("config", config, "finetune.epochs=3")

    assert code == 0
    assert yaml.safe_load(out)["finetune"]["epochs"] == 3
    assert answer("config", config)["prune"]["budget"] == {"macs": 0.5}
    assert "finetune" in answer("config", "--schema")["properties"]
    assert "expected a YAML file, or --schema" in refusal("config")


def test_doctor_and_version() -> None:
    assert answer("doctor")["fastprune"]["version"] == fp.__version__
    code, out, _ = call("doctor")
    assert code == 0
    assert "torch" in out
    assert call("--version") == (0, f"{fp.__version__}\n", "")


def test_unknown_commands_and_options_exit_with_2() -> None:
    assert call("prunne")[0] == 2
    assert call("run")[0] == 2


def test_bugs_keep_their_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("fastprune.config.load_config", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        call("run", config)


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(
    ended_by: signal.Signals, config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fastprune", "run", str(config), "--out", str(tmp_path / "a")]
    process = subprocess.Popen(
        [*command, "baseline.epochs=100000"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, and so perhaps these tests, with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "a/work/baseline/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, ended_by)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert err.splitlines()[-1] == "fastprune: interrupted; the same command goes on from here"
    assert "Traceback" not in err


def test_a_path_that_holds_no_network_is_said(tmp_path: Path) -> None:
    code, _, err = call("evaluate", tmp_path / "nope")
    assert code == 2
    assert f"{tmp_path / 'nope'}: there is no saved network and no run directory" in err


@pytest.mark.parametrize("word", ["--fresh", "--fresh-search"])
def test_control_c_names_the_word_that_would_begin_anew(
    word: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastprune.config.load_config", interrupted)
    monkeypatch.setattr(sys, "argv", ["fastprune", "run", str(config), word])
    code, _, err = call("run", config, word)

    assert code == 130
    assert err.endswith(f"; the same command without {word} goes on from here\n")


def test_doctor_measures_pipelines(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    found = answer("doctor", "--data", config, "data.train_limit=64", "data.test_limit=64")

    assert found["dataset"] == "digits"
    assert found["parts"]["train"]["auto"] == "device"
    assert {s["kind"] for s in found["parts"]["test"]["speeds"]} == {
        "device",
        "dali",
        "torchvision",
    }
    code, _, err = call("doctor", "data.train_limit=64")
    assert code == 2
    assert "only --data CONFIG takes overrides" in err


def test_compare_prints_a_table_and_writes_its_files_here(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("compare", finished, finished, tmp_path / "none")

    assert code == 0
    assert err.startswith(f"fastprune: left out: {tmp_path}/none: there is no such folder")
    (row,) = (line for line in out.splitlines() if line.startswith(" a "))
    assert "one_shot" in row
    assert out.splitlines()[-1] == "saved: comparison.csv, comparison.json, comparison.png"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "comparison.png",
    ]
    found = answer("compare", finished, "--out", "deep/er")
    assert found == json.loads((tmp_path / "deep/er/comparison.json").read_text())


def test_report_prints_the_files_that_it_writes(finished: Path, tmp_path: Path) -> None:
    page, files = tmp_path / "deep/r.html", tmp_path / "files"
    code, out, err = call("report", finished, "--out", page, "--files", files)

    assert (code, err) == (0, "")
    printed = [Path(line) for line in out.splitlines()]
    assert printed[0] == page
    assert set(printed) == {file for file in tmp_path.rglob("*") if file.is_file()}
    assert {"cost.csv", "cost.json", "channels.png", "channels.svg"} <= {f.name for f in printed}


def test_report_refuses_what_is_no_run(tmp_path: Path) -> None:
    err = refusal("report", tmp_path)

    assert err == f"fastprune: error: {tmp_path}: not a run directory: it holds no config.yaml\n"
    assert list(tmp_path.iterdir()) == []


def test_compare_refuses_where_no_run_is_left_in_a_line_each(tmp_path: Path) -> None:
    err = refusal("compare", tmp_path, tmp_path / "none", "--out", tmp_path / "out")

    assert err.splitlines() == [
        f"fastprune: error: {tmp_path}: not a run directory: it holds no config.yaml",
        f"fastprune: error: {tmp_path}/none: there is no such folder; expected a run directory",
    ]
    assert list(tmp_path.iterdir()) == []


def test_plot_prints_the_figures_it_drew(finished: Path, tmp_path: Path) -> None:
    code, out, err = call("plot", finished, "--out", tmp_path / "out")

    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{tmp_path}/out/training.png", f"{tmp_path}/out/channels.png"]
    assert all(Path(line).is_file() for line in out.splitlines())
    assert "not a run directory" in refusal("plot", tmp_path)


def test_group_prints_the_groups_and_says_no_more_than_json(
    finished: Path, tmp_path: Path
) -> None:
    code, out, err = call("group", finished, "--out", tmp_path / "out", "--quiet")

    assert (code, err) == (0, "")
    rows = [line.split(maxsplit=1) for line in out.splitlines()[3:-2]]
    assert [row[0] for row in rows] == [str(devices) for devices in range(2, 11)]
    assert rows[-1][1].strip() == " | ".join(map(str, range(10)))
    assert out.splitlines()[-1].endswith(f", {tmp_path}/out/grouping.json")
    found = answer("group", finished, "--out", tmp_path / "out", "--similarity", "covariance")
    assert found["similarity"] == "covariance"
    assert all(Path(file).is_file() for file in found["files"])
    stored = json.loads((tmp_path / "out/grouping.json").read_text())
    assert stored.items() <= found.items()


def test_group_refuses_in_one_line(finished: Path, tmp_path: Path) -> None:
    assert refusal("group", tmp_path) == (
        f"fastprune: error: {tmp_path}: not a run directory: it holds no config.yaml\n"
    )
    err = refusal("group", finished, "--similarity", "euclid", "--out", tmp_path / "out")
    assert err == (
        "fastprune: error: --similarity: unknown kind 'euclid'; known: cosine, covariance\n"
    )
    assert not (tmp_path / "out").exists()
