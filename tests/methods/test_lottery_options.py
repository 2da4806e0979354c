"""Options of lottery tickets: what goes together, and how many weights stay, to the weight."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from fastprune import models
from fastprune.config import make_config
from fastprune.errors import ConfigError, PlanError
from fastprune.graph import ChannelGraph, trace
from fastprune.methods import PruneOptions
from fastprune.methods.lottery import LotteryOptions
from fastprune.run.checks import check_recipes

NOTHING = PruneOptions()


@pytest.fixture(scope="module")
def resnet20() -> ChannelGraph:
    return trace(models.build("resnet20_cifar").eval(), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("given", "prune", "expected"),
    [
        ({}, {}, []),
        ({}, {"keep": ("layer1*",)}, []),
        ({}, {"budget": {"macs": 0.5}}, ["prune.budget: not a part of lottery tickets"]),
        (
            {},
            {"round_to": 8, "ranking": "layer"},
            ["prune.round_to: not a part", "prune.ranking: not a part"],
        ),
        ({"variant": "imp", "criterion": "l2"}, {}, ["method.criterion: ranks filters; expected"]),
        ({"variant": "rst", "batches": 3}, {}, ["method.batches: ranks filters; expected"]),
        ({"variant": "rsst", "criterion": "l2", "batches": 3}, {}, []),
        (
            {"criterion": "magnitude", "batches": 3},
            {},
            ["method.batches: criterion magnitude looks at no data"],
        ),
        ({"criterion": "hessian", "batches": 3}, {}, []),
        ({"fillback_rate": 0.2}, {}, []),
        (
            {"variant": "rsst", "fillback_rate": 0.2},
            {},
            ["method.fillback_rate: keeps filters; expected variant refill"],
        ),
        (
            {
                "schedule": "x",
                "reg_granularity_prune": 0.5,
                "exponents": 2,
                "reg_update_interval": 2,
                "reg_limit": 3,
                "dynamic_target": 50,
            },
            {},
            [
                f"method.{name}: is of the penalty; expected variant rst or rsst"
                for name in (
                    "schedule",
                    "reg_granularity_prune",
                    "exponents",
                    "reg_update_interval",
                    "reg_limit",
                    "dynamic_target",
                )
            ],
        ),
        (
            {"variant": "rst", "schedule": "x", "exponents": 2},
            {},
            ["method.exponents: is of schedule exp_custom_exponents"],
        ),
        ({"variant": "rst", "exponents": 2, "reg_limit": 3, "dynamic_target": 50}, {}, []),
        ({"start": "lt", "rewind_epoch": 1}, {}, ["method.rewind_epoch: is of start rewind_lt"]),
        ({"start": "pt", "rewind_epoch": 0}, {}, ["method.rewind_epoch: is of start rewind_lt"]),
        ({"layer_rates": {"*": 0.5}}, {}, ["method.layer_rates: expected method.ranking layer"]),
        (
            {"layer_rates": {"a": 0.5, "b": 5}, "ranking": "layer"},
            {},
            ["method.layer_rates: 'b' would drop 1 of the remaining weights; expected less"],
        ),
        (
            {"rewind_epoch": 3, "train": {"epochs": 2}},
            {},
            ["method.rewind_epoch: got 3, and method.train has 2 epochs"],
        ),
        ({"rewind_epoch": 2, "train": {"epochs": 2}}, {}, []),
        (
            {"rewind_epoch": 4, "train": {"early_stop": {"patience": 3}}},
            {},
            ["method.train.early_stop: may end state 0 before method.rewind_epoch; expected"],
        ),
        ({"rewind_epoch": 3, "train": {"early_stop": {"patience": 3}}}, {}, []),
        ({"start": "lt", "train": {"early_stop": {"patience": 1}, "keep": "best"}}, {}, []),
        (
            {"variant": "rsst", "train": {"keep": "best"}},
            {},
            ["method.train.keep: best may be weights from before the penalty grew"],
        ),
        (
            {"variant": "rst", "train": {"early_stop": {}}},
            {},
            ["method.train.early_stop: would end a state before its penalty has grown"],
        ),
    ],
)
def test_options_that_do_not_go_together(
    given: dict[str, Any], prune: dict[str, Any], expected: list[str]
) -> None:
    found = LotteryOptions.model_validate(given).problems(PruneOptions.model_validate(prune))

    assert len(found) == len(expected), found
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning)


@pytest.mark.parametrize(
    "given",
    [
        {"variant": "lth"},
        {"rate": 0},
        {"rate": 1},
        {"pruning_times": 0},
        {"pruning_times": 10_000_000},
        {"fillback_rate": 1.1},
        {"layer_rates": {"*": -1}},
        {"layer_rates": {"*": float("inf")}},
        {"layer_rates": {"*": float("nan")}},
        {"schedule": "y"},
        {"exponents": 0},
        {"reg_limit": 0},
        {"reg_granularity_prune": float("nan")},
        {"reg_update_interval": 0},
        {"dynamic_target": 100},
        {"rewind_epoch": -1},
        {"batches": 0},
        {"criterion": "taylor"},
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        LotteryOptions.model_validate(given)
    assert all(error["loc"][0] in given for error in caught.value.errors())


def test_after_twenty_rounds_the_published_number_stays(resnet20: ChannelGraph) -> None:
    options = LotteryOptions(variant="imp", pruning_times=20, rate=0.2)

    said = options.check(resnet20, NOTHING, None)
    assert said == "3,081 of 267,264 weights (1.153%)"
    assert options.targets({"a": 267_264}, range(1, 21)) == 3_081
    first = LotteryOptions(variant="imp", pruning_times=20, rate=0.2, first_conv=True)
    assert "of 267,696 weights" in first.check(resnet20, NOTHING, None)
    # Layer by layer each number is cut to an int of its own.
    layers = LotteryOptions(variant="rst", ranking="layer", pruning_times=20)
    assert layers.check(resnet20, NOTHING, None).startswith("3,0")
    assert layers.check(resnet20, NOTHING, None) != said


def test_targets_are_the_int_of_the_exact_product() -> None:
    options = LotteryOptions(rate=0.3)

    # In floats 10 · (1 − 0.3) · … would come out under the whole number.
    assert options.targets({"a": 7, "b": 3}, [1]) == 7
    assert options.targets({"a": 1000}, range(1, 4)) == 343
    layers = LotteryOptions(rate=0.1, ranking="layer", layer_rates={"a*": 2, "*b": 0, "ab": 9})
    # The first pattern that matches; one without a pattern is pruned by the rate as it is.
    assert layers.targets({"a": 100, "b": 100, "ab": 100, "c": 100}, [1]) == {
        "a": 80,
        "b": 100,
        "ab": 80,
        "c": 90,
    }
    assert layers.targets({"a": 100, "c": 100}, range(1, 3)) == {"a": 64, "c": 81}


def test_what_can_be_reached_is_said_of_filters(resnet20: ChannelGraph) -> None:
    beginnings = {
        "about 64.00% of the filters in all, of some layers more": {},
        "about 64.00% of the filters of each layer": {"ranking": "layer"},
        # 1 − 0.2 · (1 − 0.5) a round.
        "about 81.00% of the filters in all": {"fillback_rate": 0.5},
    }
    for beginning, given in beginnings.items():
        options = LotteryOptions.model_validate({"pruning_times": 2, **given})
        assert options.check(resnet20, NOTHING, None).startswith(beginning)


def test_an_idle_option_may_have_its_default() -> None:
    idle = {"variant": "imp", "criterion": "l1", "reg_limit": 1, "dynamic_target": None}
    assert LotteryOptions.model_validate(idle).problems(PruneOptions()) == []
    given = {"variant": "imp", "reg_limit": 3, "dynamic_target": 50}
    found = LotteryOptions.model_validate(given).problems(PruneOptions())
    assert [problem.rpartition("; ")[2] for problem in found] == [
        "else leave it at 1.0",
        "else leave it at null",
    ]


def test_progressive_rates_fall_by_round() -> None:
    options = LotteryOptions(rate=0.25, rates="progressive", ranking="layer")
    fifths = [5] * 5 + [4] * 5 + [3] * 5 + [2] * 7

    assert options.rates_of(range(1, 23)) == [Fraction(n, 20) for n in fifths]
    left = 1000 * Fraction(15, 20) ** 5 * Fraction(16, 20)
    assert options.targets({"a": 1000}, range(1, 7)) == {"a": int(left)}
    assert options.filters_left(range(1, 7)) == left / 1000
    assert LotteryOptions(rate=0.25).rates_of([1, 6, 11, 16]) == [Fraction(1, 4)] * 4


def test_what_does_not_go_with_the_network_is_refused(resnet20: ChannelGraph) -> None:
    options = LotteryOptions(
        variant="imp", ranking="layer", layer_rates={"layer1*": 0.5, "layers9*": 0.5}
    )
    with pytest.raises(PlanError, match=r"^method.layer_rates: 'layers9\*' matches no weight"):
        options.check(resnet20, NOTHING, None)
    hidden = {"layer1*": 0.5, "layer1.0*": 0.2}
    options = LotteryOptions(ranking="layer", layer_rates=hidden)
    with pytest.raises(PlanError, match=r"'layer1.0\*' decides nothing, .*expected it first$"):
        options.check(resnet20, NOTHING, None)
    turned = dict(reversed(hidden.items()))
    LotteryOptions(ranking="layer", layer_rates=turned).check(resnet20, NOTHING, None)
    # The first convolution is not pruned, so nothing can be said of its rate.
    first = next(op.inputs[1].name for op in resnet20.program.ops if op.name.startswith("conv"))
    named = {"ranking": "layer", "layer_rates": {first: 0.5}}
    with pytest.raises(PlanError, match=r"^method.layer_rates: "):
        LotteryOptions.model_validate(named).check(resnet20, NOTHING, None)
    LotteryOptions.model_validate(named | {"first_conv": True}).check(resnet20, NOTHING, None)
    one = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    graph = trace(one, torch.zeros(1, 3, 4, 4))
    with pytest.raises(PlanError, match=r"^method.first_conv: the network has no convolution but"):
        LotteryOptions().check(graph, NOTHING, None)


def test_filters_are_not_to_go_where_none_can() -> None:
    network = models.build("resnet20_cifar", depth=8).eval()
    whole = trace(network, torch.zeros(1, 3, 32, 32), keep=("*",))
    for variant in ("refill", "rsst"):
        options = LotteryOptions.model_validate({"variant": variant})
        with pytest.raises(PlanError, match=f"^method.variant: {variant} drops filters, .*imp or"):
            options.check(whole, NOTHING, None)
    for variant in ("imp", "rst"):
        LotteryOptions.model_validate({"variant": variant}).check(whole, NOTHING, None)
    # The group that the first convolution alone writes to is none of those that are pruned.
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 2, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    graph = trace(small, torch.zeros(1, 3, 8, 8))
    with pytest.raises(PlanError, match=r"^method.variant"):
        LotteryOptions().check(graph, NOTHING, None)
    LotteryOptions(first_conv=True).check(graph, NOTHING, None)


def config(**method: Any) -> dict[str, Any]:
    return {
        "model": {"name": "resnet20_cifar"},
        "data": {"name": "digits", "validation": 0.2},
        "method": {"name": "lottery", "train": {"epochs": 3}, **method},
    }


def test_options_go_through_yaml() -> None:
    given = make_config(
        config(
            variant="rsst",
            ranking="layer",
            layer_rates={"layer1*": 0.5},
            schedule="x^2",
            dynamic_target=40.5,
            prune_each_state=False,
        )
    )
    again = make_config(yaml.safe_load(yaml.safe_dump(given.to_dict())))

    assert again == given
    assert isinstance(again.method, LotteryOptions)
    assert again.method.layer_rates == {"layer1*": 0.5}
    assert again.method.train.epochs == 3


def test_what_a_run_needs_beside_the_method() -> None:
    with pytest.raises(ConfigError, match=r"baseline: the network has no weights"):
        make_config(config(start="pt"))
    blind = config(variant="rst", dynamic_target=40.0) | {
        "data": {"name": "digits", "validation": 0}
    }
    with pytest.raises(ConfigError, match=r"data\.validation: got 0, but method lottery"):
        make_config(blind)
    for variant in ("imp", "rst"):
        with pytest.raises(ConfigError, match=r"finetune: weights that method lottery holds"):
            make_config(config(variant=variant) | {"finetune": {"epochs": 1}})
    for variant in ("refill", "rsst"):
        make_config(config(variant=variant) | {"finetune": {"epochs": 1}})


def test_states_may_learn_from_the_unpruned_network() -> None:
    cpu = torch.device("cpu")
    check_recipes(make_config(config(train={"distill": {}})), cpu)

    sparse = {"name": "slimming", "ratio": 0.4, "train": {"distill": {}}}
    with pytest.raises(ConfigError, match=r"method\.train\.distill: needs the unpruned network"):
        check_recipes(make_config(config() | {"method": sparse}), cpu)
