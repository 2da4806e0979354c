"""MetaPruning: what it refuses before training, and what a whole search gives."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastprune.artifact import load_state, restore, save_state
from fastprune.config import make_config
from fastprune.data import Splits
from fastprune.data import load as load_data
from fastprune.data._options import DataOptions
from fastprune.errors import ArtifactError, BudgetError, ConfigError, FastpruneError, PlanError
from fastprune.graph import apply_plan, trace
from fastprune.methods import MethodContext, MethodResult, PruneOptions
from fastprune.methods._pruningnet import GeneratedSubnets, PruningNet
from fastprune.methods._trials import Trial, TrialLog, front
from fastprune.methods.metapruning import MetaPruningOptions, metapruning
from fastprune.models import resolve
from fastprune.testing.methods import method_context
from fastprune.training import evaluate, recalibrate_batch_norm

SMALL: dict[str, Any] = {
    "pruningnet": {"epochs": 1, "lr": 0.1, "precision": "fp32"},
    "population": 5,
    "select_num": 2,
    "mutation_num": 2,
    "crossover_num": 2,
    "iterations": 2,
    "batches": 2,
    "precision": "fp32",
}
NETWORK = resolve("resnet20_cifar")
HALF = PruneOptions(budget={"macs": 0.5})


def fresh(seed: int, shortcut: str = "B") -> nn.Module:
    torch.manual_seed(seed)
    return NETWORK.build(depth=8, shortcut=shortcut)


@pytest.fixture(scope="module")
def splits() -> Splits:
    options = DataOptions(train_limit=96, test_limit=40, batch_size=32, validation=60)
    return load_data(options, 0)


def context_of(
    folder: Path, options: MetaPruningOptions, splits: Splits, prune: PruneOptions = HALF
) -> MethodContext:
    model = fresh(0).eval()
    context = method_context(folder, options, prune)
    return replace(
        context,
        model=model,
        graph=trace(model, context.example, keep=prune.keep),
        splits=splits,
        fresh=fresh,
        network=NETWORK,
    )


def searched(
    folder: Path, splits: Splits, prune: PruneOptions = HALF, **given: Any
) -> tuple[MethodResult, list[Trial], MethodContext]:
    options = MetaPruningOptions.model_validate({**SMALL, **given})
    assert options.problems(prune) == []
    context = context_of(folder, options, splits, prune)
    result = metapruning(context, options)
    return result, list(TrialLog(folder / "trials.jsonl")), context


@pytest.mark.parametrize(
    ("given", "prune", "expected"),
    [
        ({}, {"round_to": 8}, ["prune.round_to: not a part of MetaPruning"]),
        ({}, {"budget": {"latency_ms": 3.0}}, ["prune.budget.latency_ms: cannot be known of"]),
        ({"gene": "1 2", "candidate": 3}, {}, ["method.candidate: method.gene", "method.cand"]),
        ({"candidate": 3}, {}, ["method.candidate: is one of an earlier search; expected method"]),
        ({"earlier": "x", "pruningnet": {}}, {}, ["method.pruningnet: that of method.earlier"]),
        ({"pruningnet": {"keep": "best"}}, {}, ["method.pruningnet.keep: looks at validation"]),
        ({"pruningnet": {"early_stop": {}}}, {}, ["method.pruningnet.early_stop: looks at val"]),
        ({"pruningnet": {"compile": True}}, {}, ["method.pruningnet.compile: every step is of"]),
        ({"pruningnet": {"capture": True}}, {}, ["method.pruningnet.capture: every step is of"]),
        ({"pruningnet": {"distill": {}}}, {}, ["method.pruningnet.distill: the pruningnet is"]),
        (
            {"pruningnet": {"recalibrate_batches": 3}},
            {},
            ["method.pruningnet.recalibrate_batches: the pruningnet has no statistics"],
        ),
        ({"pruningnet": {"lr": 0.2}}, {"keep": ("conv1",), "budget": {"macs": 0.5}}, []),
    ],
)
def test_options_that_do_not_go_together(
    given: dict[str, Any], prune: dict[str, Any], expected: list[str]
) -> None:
    found = MetaPruningOptions.model_validate(given).problems(PruneOptions.model_validate(prune))

    assert len(found) == len(expected)
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mobilenet_v2",
            "model.name: genes of torchvision:mobilenet_v2 are of mobilenet_v2_metap",
        ),
        ("vgg16_cifar", "model.name: nobody has said what a gene of this network is"),
    ],
)
def test_networks_without_genes_are_refused(name: str, expected: str) -> None:
    network = resolve(name)
    graph = trace(fresh(0).eval(), torch.zeros(1, 3, 32, 32))

    with pytest.raises(PlanError, match=f"^{expected}"):
        MetaPruningOptions().check(graph, HALF, network)


@pytest.mark.parametrize(
    ("given", "prune", "error", "expected"),
    [
        (
            {},
            {"budget": {"macs": 0.001}},
            BudgetError,
            "^prune.budget: no gene can meet it; got macs",
        ),
        ({"gene": "1 2 3"}, {}, PlanError, "^method.gene: expected 6 ids"),
        ({"gene": "30 30 -1 30 30 30"}, {}, PlanError, "^method.gene: keeps every channel"),
        (
            {"gene": "30 30 -1 30 30 29"},
            {"budget": {"macs": 0.5}},
            BudgetError,
            "^prune.budget: the network of method.gene has macs",
        ),
        ({"select_num": 60}, {}, ConfigError, "^method.select_num: expected 2 to 50"),
        ({"earlier": "nowhere"}, {}, FastpruneError, "^method.earlier: there is no pruningnet"),
    ],
)
def test_what_does_not_go_with_the_network_is_refused_before_training(
    given: dict[str, Any], prune: dict[str, Any], error: type[Exception], expected: str
) -> None:
    graph = trace(fresh(0).eval(), torch.zeros(1, 3, 32, 32))
    options = MetaPruningOptions.model_validate(given)

    with pytest.raises(error, match=expected):
        options.check(graph, PruneOptions.model_validate(prune), NETWORK)


def test_what_genes_can_reach_is_said() -> None:
    graph = trace(fresh(0).eval(), torch.zeros(1, 3, 32, 32))

    assert MetaPruningOptions().check(graph, HALF, NETWORK).startswith("macs ")


def test_fresh_weights_that_nothing_trains_are_refused(tmp_path: Path, splits: Splits) -> None:
    options = MetaPruningOptions.model_validate(SMALL)
    context = replace(context_of(tmp_path, options, splits), finetune=None)

    with pytest.raises(FastpruneError, match=r"^finetune: the network that was found begins with"):
        metapruning(context, options)


def test_a_search_finds_a_network_within_the_budget(tmp_path: Path, splits: Splits) -> None:
    result, trials, context = searched(tmp_path, splits)
    limit = 0.5 * context.graph.cost().macs

    assert len(trials) == 10
    assert len({trial.code for trial in trials}) == 10
    # The next step of any id is over it.
    assert all(0.95 * limit < trial.cost["macs"] <= limit for trial in trials)
    assert all(trial.images == 60 for trial in trials)
    best = max(trials, key=lambda trial: (trial.fitness, -trial.number))
    assert result.notes["gene"] == list(best.code)
    assert result.notes["fitness"] == best.fitness
    assert NETWORK.genes is not None
    table = NETWORK.genes(context.graph)
    assert result.plan == table.plan(best.code)
    assert result.pruned_state is None
    assert {file.name for file in result.files} == {"trials.jsonl", "pruningnet.safetensors"}
    # The weights to be trained are those of a new network.
    again = fresh(0).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in result.model.state_dict().items())


def test_the_pruningnet_is_gone_with_the_method(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the garbage collector comes by: it has 3 GB for ResNet-50."""
    made: list[weakref.ref[PruningNet]] = []
    init = PruningNet.__init__

    def noted(self: PruningNet, *given: Any) -> None:
        made.append(weakref.ref(self))
        init(self, *given)

    monkeypatch.setattr(PruningNet, "__init__", noted)
    gc.disable()
    try:
        searched(tmp_path, splits)
        assert [net() for net in made] == [None]
    finally:
        gc.enable()


def test_genes_that_do_not_fill_the_budget_are_as_drawn(tmp_path: Path, splits: Splits) -> None:
    limit = 0.5 * trace(fresh(0).eval(), torch.zeros(1, 3, 32, 32)).cost().macs
    _, trials, _ = searched(tmp_path / "drawn", splits, fill=False)

    assert all(trial.cost["macs"] <= limit for trial in trials)
    assert min(trial.cost["macs"] for trial in trials) < 0.8 * limit
    # Without a budget there is nothing to fill.
    _, free, _ = searched(tmp_path / "free", splits, PruneOptions())
    assert min(trial.cost["macs"] for trial in free) < 0.8 * 2 * limit


def pruningnet(folder: Path) -> PruningNet:
    model = fresh(0).eval()
    example = torch.zeros(1, 3, 32, 32)
    assert NETWORK.genes is not None
    net = PruningNet(model, NETWORK.genes(trace(model, example)), example)
    restore(net, load_state(folder / "pruningnet.safetensors"))
    return net


def test_fitness_is_that_of_each_candidate_alone(tmp_path: Path, splits: Splits) -> None:
    _, trials, _ = searched(tmp_path, splits)
    net = pruningnet(tmp_path)

    for trial in trials[::3]:
        plan = net.table.plan(trial.code)
        (subnet,) = GeneratedSubnets(net)([plan])
        # Weights with batch norms that hold statistics, so that they can be taken anew.
        small = apply_plan(fresh(1), trace(fresh(1).eval(), torch.zeros(1, 3, 32, 32)), plan)
        with torch.no_grad():
            for name, (_, tensor) in subnet.weights.items():
                small.get_parameter(name).copy_(tensor)
        recalibrate_batch_norm(small, splits.train, 2, "cpu")
        assert splits.validation is not None
        assert evaluate(small, splits.validation, device="cpu").top1 == trial.fitness


def test_generated_weights_to_begin_with(tmp_path: Path, splits: Splits) -> None:
    result, trials, context = searched(tmp_path, splits, weights="generated")
    best = max(trials, key=lambda trial: (trial.fitness, -trial.number))
    small = apply_plan(result.model, context.graph, result.plan)
    assert result.pruned_state is not None
    restore(small, result.pruned_state)
    assert splits.validation is not None

    assert evaluate(small.eval(), splits.validation, device="cpu").top1 == best.fitness


def test_an_earlier_run_lends_its_pruningnet_and_its_candidates(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trials, _ = searched(tmp_path / "a", splits)
    monkeypatch.setattr("fastprune.methods.metapruning.fit", None)
    lent: dict[str, Any] = {"pruningnet": None, "earlier": str(tmp_path / "a")}

    _, again, _ = searched(tmp_path / "b", splits, **lent)
    assert [replace(t, seconds=0) for t in again] == [replace(t, seconds=0) for t in trials]

    other = PruneOptions(budget={"macs": 0.4})
    _, fewer, context = searched(tmp_path / "c", splits, other, **lent)
    assert all(trial.cost["macs"] <= 0.4 * context.graph.cost().macs for trial in fewer)

    chosen, none, _ = searched(tmp_path / "d", splits, candidate=3, **lent)
    assert none == []
    assert chosen.notes == {"gene": list(trials[3].code), "weights": "fresh"}
    given, _, _ = searched(tmp_path / "e", splits, gene=list(trials[3].code))
    assert given.plan == chosen.plan
    options = MetaPruningOptions.model_validate({**SMALL, **lent, "candidate": 10})
    with pytest.raises(
        PlanError, match=r"^method.candidate: expected the number of one of the 10 "
    ):
        options.check(context.graph, HALF, NETWORK)
    save_state(tmp_path / "a" / "pruningnet.safetensors", nn.Linear(2, 2))
    with pytest.raises(ArtifactError, match=r"^method.earlier: .* cannot be taken; "):
        searched(tmp_path / "f", splits, **lent)


def test_an_earlier_run_of_another_network_is_refused_by_name(
    tmp_path: Path, splits: Splits
) -> None:
    _, _, context = searched(tmp_path / "a", splits)
    other = NETWORK.build(depth=14, shortcut="B").eval()
    graph = trace(other, torch.zeros(1, 3, 32, 32))
    lent = {**SMALL, "pruningnet": None, "earlier": str(tmp_path / "a")}

    options = MetaPruningOptions.model_validate({**lent, "candidate": 3})
    with pytest.raises(PlanError, match=r"^method.candidate: 3 in .* is of another network"):
        options.check(graph, HALF, NETWORK)
    options = MetaPruningOptions.model_validate(lent)
    context = replace(
        context, graph=graph, fresh=lambda seed: NETWORK.build(depth=14, shortcut="B").eval()
    )
    with pytest.raises(ArtifactError, match=r"^method.earlier: .* cannot be taken; expected"):
        metapruning(context, options)


def test_a_precision_that_the_device_lacks_is_refused_before_training(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastprune.methods.metapruning.fit", None)

    with pytest.raises(FastpruneError, match=r"^method.precision: fp16 needs a GPU"):
        searched(tmp_path, splits, precision="fp16")


def test_memory_has_a_limit() -> None:
    with pytest.raises(ValueError, match="memory_limit"):
        MetaPruningOptions.model_validate({"memory_limit": "inf"})


def test_an_earlier_run_with_other_validation_images_is_refused(
    tmp_path: Path, splits: Splits
) -> None:
    searched(tmp_path / "a", splits)
    (tmp_path / "a" / "config.yaml").write_text("seed: 3\n")
    lent: dict[str, Any] = {"pruningnet": None, "earlier": str(tmp_path / "a")}

    with pytest.raises(FastpruneError, match=r"was run with seed 3, .*; expected seed=3, got 0"):
        searched(tmp_path / "b", splits, **lent)
    # Nothing is measured here.
    searched(tmp_path / "c", splits, gene="3 4 -1 5 6 7", weights="generated", **lent)


def test_racing_measures_fewer_images_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who is behind at all is dropped: so few images make nobody surely worse.
    monkeypatch.setattr("fastprune.training._racing.SURE", 0.0)
    splits = load_data(
        DataOptions(train_limit=96, test_limit=40, eval_batch_size=6, validation=60), 0
    )
    result, trials, _ = searched(tmp_path, splits, racing=True)
    measured = [trial for trial in trials if trial.repeats is None]

    assert splits.validation is not None
    assert 0 < result.notes["images"] < len(measured) * splits.validation.images
    assert result.notes["images"] == sum(trial.images or 0 for trial in measured)
    assert 0 < result.notes["given_up"] == sum(trial.stopped for trial in measured)
    dropped = {trial.number for trial in trials if trial.stopped}
    assert dropped.isdisjoint(row["number"] for row in result.notes["front"])


def test_a_damaged_log_is_measured_again_by_whole_populations(
    tmp_path: Path, splits: Splits
) -> None:
    _, trials, _ = searched(tmp_path, splits, racing=True)
    file = tmp_path / "trials.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    # In the second population: its first two candidates are whole.
    file.write_bytes(b"".join([*lines[:7], b"{damaged\n", *lines[8:]]))

    _, again, _ = searched(tmp_path, splits, racing=True)
    assert [replace(t, seconds=0) for t in again] == [replace(t, seconds=0) for t in trials]


def test_the_front_holds_whom_nobody_equals_with_less() -> None:
    rows = [(5, 90.0), (3, 80.0), (4, 80.0), (5, 91.0), (6, 91.0), (2, 10.0), (7, 95.0), (1, 99.0)]
    trials = [
        Trial(i, "random", (i,), {}, {"macs": m, "params": 1}, f"p{i}", f, 0, 0.0, stopped=i == 7)
        for i, (m, f) in enumerate(rows)
    ]

    assert [row["number"] for row in front(trials)] == [5, 1, 3, 6]
    assert json.loads(json.dumps(front(trials))) == front(trials)


@pytest.mark.parametrize("gene", ["1 2 30", "1, 2, 30", "[1, 2, 30]", [1, 2, 30]])
def test_a_gene_can_be_written_in_many_ways(gene: Any) -> None:
    options = MetaPruningOptions(gene=gene)

    assert options.gene == (1, 2, 30)
    assert MetaPruningOptions.model_validate(options.model_dump(mode="json")) == options


def test_what_is_no_gene_is_one_line() -> None:
    method = {"name": "metapruning", "gene": "1 two"}
    given = {"model": {"name": "resnet20_cifar"}, "data": {"name": "digits"}, "method": method}

    with pytest.raises(ConfigError) as caught:
        make_config(given)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("config: method.gene")


def test_the_last_iteration_is_bred_from_the_first(tmp_path: Path, splits: Splits) -> None:
    _, trials, _ = searched(tmp_path, splits, moves="stage")

    assert [trial.phase for trial in trials] == ["initial"] * 5 + [
        "mutation",
        "mutation",
        "crossover",
        "crossover",
        "random",
    ]
