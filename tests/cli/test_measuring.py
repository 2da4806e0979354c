"""`fastprune count` and `fastprune evaluate` as users type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_calls import TINY, answer, call, refusal

import fastprune as fp
from fastprune import models


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
