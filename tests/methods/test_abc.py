"""ABCPruner: what it refuses before training, and what a whole search gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastprune.artifact import restore
from fastprune.config import load_config, make_config, to_yaml
from fastprune.errors import BudgetError, ConfigError, FastpruneError, PlanError
from fastprune.graph import ChannelGraph, apply_plan, trace
from fastprune.graph.units import units_by_name
from fastprune.methods import MethodContext, MethodResult, PruneOptions
from fastprune.methods._codes import check_code, space_of, units_of
from fastprune.methods._inherit import channel_order, plan_of
from fastprune.methods._trials import Trial, TrialLog
from fastprune.methods.abc import AbcOptions, abc
from fastprune.models import Network, resolve
from fastprune.testing.methods import TinyResidual, method_context
from fastprune.testing.surgery import fill
from fastprune.training import TrainingOptions, evaluate, recalibrate_batch_norm

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("abc_*.yaml"))
SMALL: dict[str, Any] = {
    "food_number": 2,
    "max_cycle": 2,
    "food_limit": 1,
    "calfitness_epoch": 1,
    "fitness": {"lr": 0.05, "schedule": "constant"},
}
SCORED: dict[str, Any] = {"evaluator": "shared", "calfitness_epoch": 0}
NOTHING = PruneOptions()


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return trace(fill(TinyResidual()), torch.zeros(1, 3, 32, 32))


def searched(
    folder: Path, prune: PruneOptions = NOTHING, **given: Any
) -> tuple[MethodResult, list[Trial], MethodContext]:
    options = AbcOptions.model_validate({**SMALL, **given})
    assert options.problems(prune) == []
    context = method_context(folder, options, prune)
    return abc(context, options), list(TrialLog(folder / "trials.jsonl")), context


@pytest.mark.parametrize(
    ("given", "prune", "expected"),
    [
        ({"inherit": "l3"}, {}, ["method.inherit: unknown rule 'l3'; known: "]),
        (
            {"inherit": "l1_pretrain"},
            {},
            ["method.inherit: unknown rule 'l1_pretrain'; ABCPruner's 'l1_pretrain' is called"],
        ),
        ({}, {"round_to": 8}, ["prune.round_to: not a part of ABCPruner"]),
        (
            {},
            {"ranking": "layer", "ratios": {"conv1": 0.5}},
            ["prune.ranking: not a part of", "prune.ratios: not a part of"],
        ),
        ({}, {"budget": {"latency_ms": 3.0}}, ["prune.budget.latency_ms: cannot be known of"]),
        ({"racing": True, "calfitness_epoch": 1}, {}, ["method.racing: gives up between epochs"]),
        (
            {"fitness": {"epochs": 3}},
            {},
            ["method.fitness.epochs: got 3, but method.calfitness_epoch is 2; expected one"],
        ),
        ({"fitness": {"keep": "best"}}, {}, ["method.fitness.keep: looks at validation images"]),
        ({"fitness": {"early_stop": {}}}, {}, ["method.fitness.early_stop: looks at validation"]),
        ({"fitness": {"compile": True}}, {}, ["method.fitness.compile: every candidate is ano"]),
        ({"fitness": {"distill": {}}}, {}, ["method.fitness.distill: candidates are trained"]),
        ({"fitness": {"epochs": 2}}, {"keep": ("stem",), "budget": {"macs": 0.5}}, []),
        ({"calfitness_epoch": 0}, {}, ["method.calfitness_epoch: evaluator trained trains cand"]),
        ({"recalibrate_batches": 5}, {}, ["method.recalibrate_batches: for evaluator shared; wi"]),
        (
            {"evaluator": "shared"},
            {},
            ["method.evaluator: shared trains nothing; expected calfitness_epoch 0, got 2"],
        ),
        (
            {**SCORED, "fitness": {"lr": 0.1}, "racing": True, "parallel": 2},
            {},
            [
                "method.fitness: a recipe of training, and evaluator shared trains nothing",
                "method.racing: stops trainings, and evaluator shared trains nothing",
                "method.parallel: evaluator shared measures all candidates of a phase in one",
            ],
        ),
        ({**SCORED, "recalibrate_batches": 0}, {}, []),
    ],
)
def test_options_that_do_not_go_together(
    given: dict[str, Any], prune: dict[str, Any], expected: list[str]
) -> None:
    found = AbcOptions.model_validate(given).problems(PruneOptions.model_validate(prune))

    assert len(found) == len(expected)
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning)


@pytest.mark.parametrize("given", [{"lr": 0.3}, TrainingOptions(lr=0.3)], ids=["mapping", "model"])
def test_a_fitness_recipe_has_the_epochs_of_calfitness_epoch(given: Any) -> None:
    options = AbcOptions(calfitness_epoch=3, fitness=given)

    assert options.recipe == TrainingOptions(lr=0.3, epochs=3)
    assert AbcOptions.model_validate(options.model_dump(mode="json")) == options
    assert AbcOptions(calfitness_epoch=3).recipe == TrainingOptions(
        lr=0.01, epochs=3, schedule="constant"
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("5 six", "method.code: expected whole numbers such as '5 5 6', got 'six'"),
        ("", "method.code: expected whole numbers such as '5 5 6', got ''"),
        ([5, 5.5], "method.code: expected whole numbers such as '5 5 6', got 5.5"),
        (5.5, "method.code: expected whole numbers such as '5 5 6', got 5.5"),
    ],
)
def test_what_is_no_code_is_one_line(code: Any, expected: str) -> None:
    given = {"model": "m", "data": {"name": "digits"}, "baseline": {}}
    given = {**given, "model": {"name": "resnet20_cifar"}, "method": {"name": "abc", "code": code}}

    with pytest.raises(ConfigError) as caught:
        make_config(given)
    assert caught.value.problems == (f"config: {expected}",)


@pytest.mark.parametrize("code", ["5 6", "5,6", " 5 ,  6 ", [5, 6], (5, 6)])
def test_a_code_can_be_written_in_many_ways(code: Any) -> None:
    assert AbcOptions(code=code).code == (5, 6)


def test_a_code_of_one_number_is_one_for_yaml_too() -> None:
    assert AbcOptions.model_validate({"code": 5}).code == (5,)


@pytest.mark.parametrize(
    ("code", "prune", "error", "expected"),
    [
        ((5, 5, 5), {}, PlanError, r"^method\.code: expected 2 whole numbers .*; got 3$"),
        (
            (5, 11),
            {},
            PlanError,
            r"^method\.code: number 2 \(\w+\): expected .* from 1 to 10, got 11$",
        ),
        ((10, 10), {}, PlanError, r"^method\.code: keeps every channel; nothing would be pruned$"),
        (
            (9, 9),
            {"budget": {"macs": 0.5, "channels": 0.9}},
            BudgetError,
            r"^prune\.budget: the network of method\.code has macs [\d,]+, channels \d+; over bu",
        ),
    ],
)
def test_a_given_code_that_will_not_do_is_refused_before_training(
    graph: ChannelGraph,
    code: tuple[int, ...],
    prune: dict[str, Any],
    error: type[FastpruneError],
    expected: str,
) -> None:
    options = AbcOptions(code=code)

    with pytest.raises(error, match=expected):
        options.check(graph, PruneOptions.model_validate(prune), None)


def test_a_given_code_is_the_plan_and_nothing_is_trained(tmp_path: Path) -> None:
    result, trials, context = searched(tmp_path, code="5 8", inherit="first")

    assert list(result.plan.widths().values()) == [4, 6]
    assert all(kept == tuple(range(len(kept))) for kept in result.plan.keep.values())
    assert result.model is context.model
    assert result.pruned_state is None
    assert (result.notes, result.files) == ({"code": [5, 8]}, ())
    assert trials == []
    assert not AbcOptions(code="5 8").recipes
    assert not AbcOptions(code="5 8").needs_validation


@pytest.mark.parametrize("budget", [{"macs": 0.01}, {"channels": 1.5}, {"size_mb": 1e-5}])
def test_a_budget_that_no_code_meets_is_refused_before_training(
    graph: ChannelGraph, budget: dict[str, float]
) -> None:
    with pytest.raises(
        BudgetError, match=r"^prune\.budget: no code .*; got \w+ .* codes have macs "
    ):
        AbcOptions().check(graph, PruneOptions(budget=budget), None)


def test_what_can_be_reached_is_what_codes_reach(graph: ChannelGraph) -> None:
    units = units_of("auto", graph, None)
    low, high = (graph.cost(units.widths(graph, (k, k))) for k in (1, 6))
    line = AbcOptions(max_preserve=6).check(graph, NOTHING, None)

    assert line.startswith(f"macs {low.macs:,.6g} to {high.macs:,.6g}, params {low.params:,.6g} ")
    # Less than the floor that ranking by score keeps, and a limit that bounds nothing.
    for macs in (low.macs, 1.0):
        AbcOptions().check(graph, PruneOptions(budget={"macs": macs}), None)


@pytest.mark.parametrize("units", ["group", "stage"])
def test_a_network_with_nothing_to_prune_is_refused(units: str) -> None:
    graph = trace(TinyResidual(), torch.zeros(1, 3, 32, 32), keep=["*"])

    with pytest.raises(PlanError, match=r"^method\.units: there are none; .* prune\.keep"):
        AbcOptions(units=units).check(graph, PruneOptions(keep=("*",)), None)


@pytest.mark.parametrize(
    "budget", [{"macs": 0.5}, {"params": 700}, {"channels": 0.6}, {"size_mb": 0.5}]
)
def test_codes_of_the_space_are_those_within_the_budget(
    graph: ChannelGraph, budget: dict[str, float]
) -> None:
    units = units_of("auto", graph, None)
    space = space_of(10, graph, budget, units)
    codes = np.array([(a, b) for a in range(1, 11) for b in range(1, 11)], np.int64)
    full = graph.cost().to_dict()
    ((metric, value),) = budget.items()
    limit = value * full[metric] if value < 1 else value
    costs = [graph.cost(units.widths(graph, code)).to_dict()[metric] for code in codes.tolist()]

    within = space.fits(codes)
    assert within.tolist() == [cost <= limit for cost in costs]
    assert within.any()
    assert not within.all()


def test_keeping_everything_is_no_candidate(graph: ChannelGraph) -> None:
    options = AbcOptions(max_preserve=10)
    space = space_of(options.max_preserve, graph, None, units_of("auto", graph, None))

    assert space.fits(np.array([[10, 10], [10, 9], [1, 10]], np.int64)).tolist() == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("order", ["batched", "published"])
def test_every_trial_is_within_budget_and_max_preserve(tmp_path: Path, order: str) -> None:
    prune = PruneOptions(budget={"macs": 0.6, "params": 0.7})
    result, trials, context = searched(tmp_path, prune, order=order, max_preserve=6)
    full = context.graph.cost()

    assert len(trials) >= 6
    for trial in trials:
        assert max(trial.code) <= 6
        assert trial.cost["macs"] <= 0.6 * full.macs
        assert trial.cost["params"] <= 0.7 * full.params
    assert result.notes["candidates"] == len(trials)


def test_more_changes_than_a_code_has_numbers_change_all_of_them(tmp_path: Path) -> None:
    result, trials, _ = searched(tmp_path, honeychange_num=50)

    assert result.notes["code"] == list(max(trials, key=lambda t: (t.fitness, -t.number)).code)


@pytest.mark.parametrize(("split", "metric"), [("validation", "top1"), ("test", "top5")])
def test_the_best_is_given_with_the_weights_that_its_fitness_was_measured_on(
    tmp_path: Path, split: str, metric: str
) -> None:
    result, trials, context = searched(tmp_path, fitness_split=split, fitness_metric=metric)
    best = max(trials, key=lambda trial: (trial.fitness, -trial.number))
    small = apply_plan(context.model, context.graph, result.plan)
    assert result.pruned_state is not None
    restore(small, result.pruned_state)
    pipeline = context.splits.parts[split]
    measured = evaluate(small, pipeline, device=torch.device("cpu"), channels_last=True)

    assert getattr(measured, metric) == best.fitness == result.notes["fitness"]
    assert result.plan.digest == best.plan
    assert result.notes["code"] == list(best.code)
    assert result.notes["trained"] == len({trial.plan for trial in trials})
    # Of all trainings that of the best alone was kept.
    assert [folder.name for folder in (tmp_path / "candidates").iterdir()] == [best.plan]
    assert result.files == (tmp_path / "trials.jsonl",)


def test_without_validation_images_fitness_needs_the_test_images_by_name(tmp_path: Path) -> None:
    options = AbcOptions.model_validate(SMALL)
    context = method_context(tmp_path, options, NOTHING)
    bare = replace(context, splits=replace(context.splits, validation=None))

    with pytest.raises(FastpruneError, match=r"^method\.fitness_split: looks at validation im"):
        abc(bare, options)
    other = AbcOptions.model_validate({**SMALL, "fitness_split": "test", "max_cycle": 1})
    assert not other.needs_validation
    assert abc(bare, other).plan.keep


def test_the_control_asks_for_as_many_random_codes(tmp_path: Path) -> None:
    _, trials, _ = searched(tmp_path, search="random")

    assert len(trials) == 2 + 2 * (2 * 2 + 1)
    assert {trial.phase for trial in trials} == {"random"}


def test_a_search_is_the_same_with_the_memo_of_another_seed_not(tmp_path: Path) -> None:
    options = AbcOptions.model_validate(SMALL)
    codes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        context = method_context(tmp_path / name, options, NOTHING)
        abc(replace(context, seed=seed), options)
        codes.append([trial.code for trial in TrialLog(tmp_path / name / "trials.jsonl")])
    assert codes[0] == codes[1] != codes[2]


def test_a_search_that_goes_on_inherits_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, trials, _ = searched(tmp_path, inherit="taylor")
    file = tmp_path / "trials.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:4]))

    def others(*_: Any, **__: Any) -> None:
        raise AssertionError("ranked again")

    monkeypatch.setattr("fastprune.methods.abc.channel_order", others)
    again, trials_again, _ = searched(tmp_path, inherit="taylor")

    assert again.plan == result.plan
    assert [t.fitness for t in trials_again] == [t.fitness for t in trials]


def test_what_a_number_of_a_code_governs(graph: ChannelGraph) -> None:
    def table(graph: ChannelGraph) -> Any:
        return units_by_name(graph, r"(conv1)")

    def names(units: str, own: Callable[[ChannelGraph], Any] | None) -> tuple[str, ...]:
        network = Network("tiny", TinyResidual, units=own)
        return units_of(units, graph, network).names

    groups = tuple(group.name for group in graph.groups)
    assert names("auto", table) == names("family", table) == ("conv1",)
    assert names("auto", None) == names("group", table) == groups
    assert names("stage", table) == ("8x8",)
    with pytest.raises(PlanError, match=r"^method\.units: the network has no table of its own"):
        names("family", None)


def test_several_at_a_time_need_a_network_that_can_be_opened_again(tmp_path: Path) -> None:
    options = AbcOptions.model_validate({**SMALL, "parallel": 2})
    context = replace(method_context(tmp_path, options, NOTHING), reopen=None)

    with pytest.raises(FastpruneError, match=r"^method\.parallel: network and data cannot be"):
        abc(context, options)


def test_how_long_it_may_take_is_said_before_and_on_going_on(tmp_path: Path) -> None:
    options = AbcOptions.model_validate(SMALL)
    notes: list[str] = []
    context = method_context(tmp_path, options, NOTHING)

    class Noting(type(context.progress)):  # type: ignore[misc]
        def note(self, message: str) -> None:
            notes.append(message)

    context = replace(context, progress=Noting())
    abc(context, options)
    log = tmp_path / "trials.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    abc(context, options)

    assert "search: 12 candidates at most, each trained for 1 epoch" in notes[0]
    assert "an epoch of the unpruned network takes " in notes[0]
    (again,) = (note for note in notes[1:] if note.startswith("search: "))
    assert "search: 9 candidates at most" in again
    assert "trained so far took" in again


def scored(folder: Path, **given: Any) -> tuple[MethodResult, list[Trial], MethodContext]:
    return searched(folder, **{**SCORED, "fitness": None, **given})


@pytest.mark.parametrize("order", ["batched", "published"])
@pytest.mark.parametrize(("split", "metric"), [("validation", "top1"), ("test", "top5")])
def test_scored_candidates_are_those_recalibrated_and_measured_one_by_one(
    tmp_path: Path, order: str, split: str, metric: str
) -> None:
    result, trials, context = scored(
        tmp_path, order=order, fitness_split=split, fitness_metric=metric, recalibrate_batches=2
    )
    pipeline = context.splits.parts[split]
    graph, device = context.graph, torch.device("cpu")
    for trial in trials:
        keep = plan_of(graph, trial.widths, channel_order("l1", context.model, graph, seed=0))
        assert keep.digest == trial.plan
        small = apply_plan(context.model, graph, keep)
        recalibrate_batch_norm(small, context.splits.train, 2, device)
        metrics = evaluate(small, pipeline, device=device)
        assert trial.fitness == getattr(metrics, metric)
        assert trial.epochs == 0
        assert trial.images == (metrics.images if trial.repeats is None else 0)
        if trial.plan == result.plan.digest:
            best = small.state_dict()
    assert result.pruned_state is not None
    assert list(result.pruned_state) == list(best)
    assert all(torch.equal(best[name], t) for name, t in result.pruned_state.items())
    assert result.notes["fitness"] == max(trial.fitness for trial in trials)
    assert result.notes["scored"] == len({trial.plan for trial in trials})
    assert "trained" not in result.notes
    assert not (tmp_path / "candidates").exists()


def test_a_scored_search_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, trials, _ = scored(tmp_path)
    file = tmp_path / "trials.jsonl"
    for lines in (0, 1, 4, len(trials)):
        kept = file.read_bytes().splitlines(keepends=True)[:lines]
        file.write_bytes(b"".join(kept))
        again, trials_again, _ = scored(tmp_path)

        assert again.plan == whole.plan
        assert again.notes == whole.notes
        assert [replace(t, seconds=0) for t in trials_again] == [
            replace(t, seconds=0) for t in trials
        ]
        assert again.pruned_state is not None
        assert whole.pruned_state is not None
        for name, tensor in whole.pruned_state.items():
            assert torch.equal(tensor, again.pruned_state[name])


def test_options_of_a_scored_search_are_read_again() -> None:
    options = AbcOptions.model_validate(SCORED)

    assert not options.recipes
    assert options.needs_validation
    assert AbcOptions.model_validate(options.model_dump(mode="json")) == options
    # Refused with its problems and not before.
    assert not AbcOptions(calfitness_epoch=0, fitness={"lr": 0.1}).recipes


# The published experiments: the highest tenth a code may have, and its number of units.
PUBLISHED = {
    "abc_vgg16_cifar10": (8, 13),
    "abc_resnet56_cifar10": (7, 27),
    "abc_resnet56_cifar10_cpu": (9, 27),
    "abc_resnet56_cifar100": (7, 27),
    "abc_resnet110_cifar10": (6, 54),
    "abc_googlenet_cifar10": (3, 9),
    "abc_densenet40_cifar10": (8, 36),
    "abc_resnet18_imagenet": (7, 8),
    "abc_resnet34_imagenet": (5, 16),
    "abc_resnet50_imagenet": (8, 16),
    "abc_resnet101_imagenet": (8, 33),
    "abc_resnet152_imagenet": (7, 50),
    "abc_quick_digits": (7, 6),
}


def test_every_configuration_is_known_here() -> None:
    assert {path.stem for path in CONFIGS} == set(PUBLISHED)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_are_valid(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    options = config.method
    assert isinstance(options, AbcOptions)
    found = resolve(config.model.name)
    classes = {"cifar100": 100, "imagefolder": 1000}.get(config.data.name, 10)
    model = found.build(num_classes=classes, **config.model.options)
    graph = trace(model, torch.zeros(1, *found.input_shape))

    assert found.units is not None
    units = units_of(options.units, graph, found)
    assert (options.max_preserve, len(units)) == PUBLISHED[path.stem]
    options.check(graph, config.prune, found)
    with pytest.raises(PlanError, match="keeps every channel"):
        check_code((10,) * len(units), graph, config.prune.budget, units)
    # What a run writes down is read again when it goes on.
    again = tmp_path / "config.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again) == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


@pytest.mark.parametrize(
    "path",
    [p for p in CONFIGS if not p.stem.endswith(("_digits", "_cpu"))],
    ids=lambda path: path.stem,
)
def test_the_configurations_have_the_published_recipes(path: Path) -> None:
    config = load_config(path)
    options, finetune = config.method, config.finetune
    assert isinstance(options, AbcOptions)
    assert finetune is not None
    large = path.stem.endswith("imagenet")
    recipe = options.recipe

    assert options.food_number == 10
    assert options.max_cycle == (50 if large else 10)
    assert (options.food_limit, options.honeychange_num, options.calfitness_epoch) == (5, 2, 2)
    assert (options.inherit, options.fitness_split, options.racing) == ("l1", "validation", False)
    assert config.data.batch_size == (256 if large else 128)
    assert (recipe.epochs, recipe.schedule, recipe.lr) == (2, "constant", 0.01)
    # What the two recipes have in common is written once.
    shared = {"epochs", "schedule", "warmup_epochs", "milestones", "gamma"}
    assert recipe.model_dump(exclude=shared) == finetune.model_dump(exclude=shared)
    light = large or path.stem.startswith("abc_densenet40")
    assert (finetune.momentum, finetune.weight_decay) == (0.9, 1e-4 if light else 5e-4)
    assert (finetune.schedule, finetune.gamma) == ("multistep", 0.1)
    assert finetune.epochs == (90 if large else 150)
    assert finetune.milestones == ((30, 60) if large else (50, 100))
    assert finetune.warmup_epochs == (5 if large else 0)
    assert finetune.label_smoothing == (0.1 if large else 0)
    assert finetune.no_decay_norm_bias is large
