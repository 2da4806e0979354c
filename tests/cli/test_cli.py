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
import torch
import yaml
from typer.testing import CliRunner

import fastprune as fp
from fastprune import models
from fastprune.cli import app

TINY = "fastprune.testing.methods:TinyResidual"
CONFIG: dict[str, Any] = {
    "model": {"name": TINY},
    "data": {"name": "digits", "train_limit": 96, "test_limit": 40, "batch_size": 32},
    "baseline": {"epochs": 1, "lr": 0.05},
    "method": {"name": "one_shot"},
    "prune": {"budget": {"macs": 0.5}},
    "device": "cpu",
    "latency": {"repeats": 3, "batch_size": 1},
}


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def answer(*arguments: str | Path) -> Any:
    """What a command that ends well prints as JSON."""
    code, out, err = call(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def refusal(*arguments: str | Path) -> str:
    """What a command says when it cannot do what it is asked."""
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory, finished."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    code, _, err = call("run", folder / "tiny.yaml", "--out", folder / "a", "--quiet")
    assert code == 0, err
    return folder / "a"


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


def test_count_counts_what_a_plan_or_widths_leave(tmp_path: Path) -> None:
    model = models.build("resnet20_cifar")
    graph = fp.trace(model, torch.zeros(1, 3, 32, 32))
    plan = fp.solve(graph, fp.criteria.l1(model, graph), {"macs": 0.5})
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    full = answer("count", "resnet20_cifar")
    found = answer("count", "resnet20_cifar", "--plan", tmp_path / "plan.json")
    widths = answer("count", "resnet20_cifar", "--channels", json.dumps(plan.widths()))

    assert full == {
        "model": "resnet20_cifar",
        "input": [3, 32, 32],
        "counting": "macs",
        **graph.cost().to_dict(),
    }
    assert full["params"] == 269_722
    assert found["pruned"] == widths["pruned"] == graph.cost(plan).to_dict()


def test_count_knows_shapes_classes_options_and_other_rules() -> None:
    counted = answer(
        "count", "vgg11_cifar", "--input", "3x64x64", "--num-classes", "7", "--counting", "thop"
    )
    deep = answer("count", "resnet20_cifar", "--model-option", "depth=8", "--groups")

    assert counted["input"] == [3, 64, 64]
    assert counted["macs"] > 4 * 152_000_000
    assert counted["params"] == 9_228_362 - 3 * 513
    assert deep["params"] == 75_290
    assert deep["groups"][0] == {"name": "conv1", "channels": 16, "kind": "coupled"}
    assert any(row["reason"] == "network output" for row in deep["unprunable"])
    code, out, _ = call("count", "resnet20_cifar", "--channels", '{"layer1.0.conv1": 8}')
    assert code == 0
    assert "269,722" in out


def test_count_counts_a_saved_network(finished: Path) -> None:
    found = answer("count", finished, "--groups")
    report = json.loads((finished / "report.json").read_text())

    assert {name: found[name] for name in report["cost"]["pruned"]} == report["cost"]["pruned"]
    assert found["groups"]
    assert "is a saved network" in refusal("count", finished, "--code=5 5")


def test_evaluate_knows_what_a_saved_network_tells_apart(finished: Path, tmp_path: Path) -> None:
    saved = json.loads((finished / "pruned.json").read_text())
    for name, classes in (("other", ["x"] * 10), ("more", ["x"] * 12)):
        saved["classes"] = classes
        (tmp_path / f"{name}.json").write_text(json.dumps(saved))
        weights = (finished / "pruned.safetensors").read_bytes()
        (tmp_path / f"{name}.safetensors").write_bytes(weights)
    digits = ("--data=digits", "test_limit=8")
    err = refusal("evaluate", tmp_path / "more", *digits)
    assert "more tells 12 classes apart, and digits has 10" in err
    code, _, err = call("evaluate", tmp_path / "other", *digits)
    assert code == 0
    assert "was trained for other classes ('x', …) than digits has ('0', …)" in err


def test_count_counts_what_a_code_leaves() -> None:
    code = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]
    given = ("count", "vgg16_cifar_abc", "--code", ", ".join(str(k) for k in code))
    found, thop = answer(*given), answer(*given, "--counting", "thop", "--groups")

    assert found["code"] == code
    assert found["pruned"]["params"] == 3_543_214
    assert found["pruned"]["channels"] == 1946
    assert found["pruned"]["macs"] == 80_048_184
    assert found["dropped"]["macs"] == round(1 - 80_048_184 / 313_201_664, 6)
    assert set(found["dropped"]) == {"macs", "params", "channels"}
    assert (thop["macs"], thop["pruned"]["macs"]) == (314_590_198, 80_486_682)
    assert thop["units"][1] == {"name": "features.3", "groups": ["features.3"]}
    _, out, _ = call(*given)
    assert "code 1 2 3 4 5 6 7 8 9 1 2 3 4" in out
    assert "74.44 %" in out
    tiny = answer("count", TINY, "--input", "3x8x8", "--code", "1 10")
    assert tiny["pruned"]["params"] < tiny["params"]


def test_count_counts_what_a_gene_leaves() -> None:
    gene = "-1 10 16 17 -1 9 3 7 23 10 19 12 16 20 17 13 22 11 18 19 24"
    published = ("--published-quirks", "--counting", "ptflops")
    found = answer("count", "resnet50", "--gene", gene, *published)
    assert found["model"] == "torchvision:resnet50"
    assert found["gene"] == [int(number) for number in gene.split()]
    assert (found["stage_out"][:2], found["mid"][0]) == ([64, 102], 23)
    assert found["macs"] == 4_080_432_640
    assert found["dropped"]["params"] == round(1 - found["pruned"]["params"] / 25_557_032, 6)

    paper = answer("count", "mobilenet_v2", "--gene", "baseline")
    table = answer("count", "mobilenet_v2", "--gene", "baseline", "--rule", "table", "--groups")
    assert (paper["pruned"]["params"], table["pruned"]["params"]) == (5_313_198, 6_546_008)
    assert table["ids"][8] == {"name": "last", "groups": ["features.18.0"], "fixed": True}
    small = answer("count", "resnet20_cifar", "--gene", "5 " * 9 + "31.7", "--rule", "table")
    assert small["mid"] == [4, 4, 4, 8, 8, 8, 16, 16, 16]
    _, out, _ = call("count", "resnet20_cifar", "--gene", "5 " * 9, "--groups")
    assert "mid 4 4 4 8 8 8 16 16 16" in out
    assert "id 9, layer3.2: layer3.2.conv1" in out


def test_evaluate_normalises_as_the_saved_networks_options_say(tmp_path: Path) -> None:
    model = models.build("resnet18", num_classes=10, stem="small")
    graph = fp.trace(model, torch.zeros(1, 3, 32, 32))
    plan = fp.PruningPlan(dict.fromkeys(graph.widths(), (0,)), graph.widths())
    fp.save(
        tmp_path / "net",
        fp.apply_plan(model, graph, plan),
        plan=plan,
        architecture="resnet18",
        options={"stem": "small"},
        num_classes=10,
    )
    found = answer("evaluate", tmp_path / "net", "--data", "digits", "--quiet")
    assert found["normalization"]["source"] == "dataset"


def test_count_takes_the_usual_input_of_what_the_options_make() -> None:
    small = ("count", "resnet50", "--model-option", "stem=small")
    found = answer(*small, "--num-classes", "10", "--groups")
    assert found["input"] == [3, 32, 32]
    assert (found["params"], found["macs"]) == (23_520_842, 1_297_829_888)
    assert len(found["units"]) == 16
    assert answer(*small, "--gene", "baseline")["pruned"]["params"] == 25_549_352
    assert answer("count", "resnet50", "--model-option", "stem=large")["input"] == [3, 224, 224]
    code, _, err = call(*small, "--gene", "baseline", "--published-quirks")
    assert code == 2
    assert "--published-quirks: torchvision:resnet50 has none" in err


def test_count_finds_selected_groups_by_their_names() -> None:
    found = answer(
        "count",
        "preresnet164_cifar",
        "--model-option",
        "depth=11",
        "--channels",
        '{"layer2.0.bn1": 10}',
    )

    assert found["pruned"]["macs"] < found["macs"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resnet20_cifer"], "unknown name 'resnet20_cifer'; did you mean 'resnet20_cifar'"),
        (["vgg11_cifar", "--input", "32x32"], "--input: expected channels x height x width"),
        (["vgg11_cifar", "--counting", "flops"], "--counting: unknown rule 'flops'"),
        (["vgg11_cifar", "--channels", "{"], "--channels: not valid JSON"),
        (["vgg11_cifar", "--channels", "[]"], "--channels: expected {"),
        (["vgg11_cifar", "--channels", '{"feature.0": 65}'], "from 1 to 64"),
        (["vgg11_cifar", "--channels", '{"feature.2": 5}'], "not a group of this network"),
        (["vgg11_cifar", "--code", "5 5"], "code: expected 8 whole numbers from 1 to 10"),
        (["vgg11_cifar", "--code", "5 5 5 5 5 5 5 0"], "code: number 8 (feature.25): expected"),
        (["vgg11_cifar", "--code", "a"], "code: expected whole numbers such as '5 5 6', got 'a'"),
        (
            ["vgg11_cifar", "--code", "5", "--channels", "{}"],
            "--code: --channels is given too; expected one of the two",
        ),
        (
            ["vgg11_cifar", "--plan", "none.json", "--channels", "{}"],
            "--channels: --plan is given too; expected one of the two",
        ),
        (["resnet20_cifar", "--gene", "5 5"], "gene: expected 9 ids, and at most the search's"),
        (["resnet20_cifar", "--gene", "5 " * 8 + "31"], "gene: number 9 (layer3.2): expected"),
        (["vgg11_cifar", "--gene", "5"], "gene: nobody has said what a gene of vgg11_cifar is"),
        (
            ["resnet20_cifar", "--gene", "5", "--code", "5"],
            "--code: --gene is given too; expected one of the two",
        ),
        (
            ["resnet20_cifar", "--gene", "5", "--rule", "tables"],
            "--rule: unknown rule 'tables'; did you mean 'table'",
        ),
        (["resnet20_cifar", "--rule", "table"], "--rule: says how a gene is counted; expected"),
        (
            ["resnet20_cifar", "--gene", "5", "--published-quirks"],
            "--published-quirks: resnet20_cifar has none",
        ),
        (["vgg11_cifar", "--plan", "none.json"], "--plan none.json: No such file"),
        (["vgg11_cifar", "--plan", __file__], "not valid JSON"),
        (["vgg11_cifar", "--model-option", "depth=3"], "takes no options, got depth"),
        ([TINY], "has no usual input; expected a shape such as 3x32x32"),
    ],
)
def test_count_refuses_in_one_line(arguments: list[str], expected: str) -> None:
    (line,) = refusal("count", *arguments).splitlines()

    assert line.startswith("fastprune: error: ")
    assert expected in line


def test_a_run_directory_and_a_saved_network_are_evaluated_as_they_were_trained(
    finished: Path,
) -> None:
    report = json.loads((finished / "report.json").read_text())
    whole = answer("evaluate", finished)
    saved = answer(
        "evaluate", finished / "pruned.json", "test_limit=40", "--data", "digits", "--quiet"
    )

    assert whole["top1"] == saved["top1"] == pytest.approx(report["accuracy"]["pruned"]["top1"])
    assert (whole["images"], whole["split"]) == (40, "test")
    assert whole["normalization"]["source"] == "saved"
    code, out, _ = call("evaluate", finished)
    assert code == 0
    assert out.startswith(f"{finished} on digits (test, 40 images): top-1 ")


def test_evaluation_takes_the_normalisation_that_the_weights_expect(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(models.build("resnet20_cifar", depth=8).state_dict(), tmp_path / "w.pt")
    given = ("evaluate", "resnet20_cifar", "test_limit=20", "--model-option", "depth=8")
    given = (*given, "--weights", str(tmp_path / "w.pt"), "--data", "digits")
    found = {
        name: answer(*given, *(("--normalization", name) if name else ()))["normalization"]
        for name in ("", "dataset", "none", '{"mean": [0, 0, 1], "std": [1, 2, 3]}')
    }

    assert found[""]["mean"] == [0.485, 0.456, 0.406]
    assert found[""]["source"] == "weights"
    assert found["dataset"]["source"] == "dataset"
    assert found["none"] == {"mean": [0, 0, 0], "std": [1, 1, 1], "source": "given"}
    assert found['{"mean": [0, 0, 1], "std": [1, 2, 3]}']["std"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resnet20_cifar", "--weights", "w.pt"], "--data: expected a dataset, one of cifar10"),
        (["resnet20_cifar", "--data", "digits"], "--weights: expected the weights of resnet20"),
        (["resnet20_cifar", "--data", "digits", "--weights", "w.pt"], "w.pt"),
        (["resnet20_cifar", "--data", "digit", "--weights", "w.pt"], "did you mean 'digits'"),
        (["none.json", "--data", "digits"], "no saved network there"),
        (["resnet20_cifar", "--data", "digits", "--split", "all"], "--split: expected test"),
        (["resnet20_cifar", "batch=3", "--data", "digits"], "data: batch: unknown key; did you"),
        (
            ["resnet20_cifar", "--data", "digits", "--normalization", "cifar"],
            "--normalization: expected dataset, imagenet, none or {",
        ),
    ],
)
def test_evaluate_refuses_in_one_line(arguments: list[str], expected: str) -> None:
    (line,) = refusal("evaluate", *arguments).splitlines()

    assert expected in line


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
    config = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
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
