from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fastprune import methods
from fastprune.config import (
    RunConfig,
    json_schema,
    load_config,
    make_config,
    overlaid,
    parse_overrides,
    to_yaml,
)
from fastprune.errors import ConfigError
from fastprune.methods.one_shot import OneShotOptions
from fastprune.methods.slimming import SlimmingOptions
from fastprune.options import Options

SMALL: dict[str, Any] = {
    "model": {"name": "resnet20_cifar", "weights": "a.pt"},
    "data": {"name": "digits"},
    "method": {"name": "one_shot"},
    "prune": {"budget": {"macs": 0.5}},
}


def problems(given: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make_config(given)
    return list(caught.value.problems)


def written(folder: Path, text: str) -> Path:
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_get_their_defaults_and_the_methods_own_type() -> None:
    config = make_config(SMALL)

    assert isinstance(config.method, OneShotOptions)
    assert config.method.criterion == "l1"
    assert config.prune.budget == {"macs": 0.5}
    assert make_config(SMALL | {"method": "one_shot"}) == config


def test_the_resolved_yaml_gives_the_same_configuration(tmp_path: Path) -> None:
    config = make_config(
        SMALL | {"finetune": {"epochs": 3, "lr": 1e-4, "distill": {"alpha": 0.25}}}
    )

    assert load_config(written(tmp_path, to_yaml(config))) == config


def test_everything_wrong_is_said_at_once_with_its_path_and_the_nearest_name() -> None:
    found = problems(
        {
            "model": {"name": "resnet20_cifar", "weigths": "a.pt"},
            "data": {"name": "digits", "batchsize": 3},
            "method": {"name": "one_shot", "criterio": "l1"},
            "prune": {"budget": {"mac": 0.5}, "round_to": 0},
            "finetune": {"epochs": "many", "distill": {"alfa": 1}},
            "devise": "cpu",
        }
    )

    assert found == [
        "config: model.weigths: unknown key; did you mean 'weights'?",
        "config: data.batchsize: unknown key; did you mean 'batch_size' or 'eval_batch_size'?",
        "config: method.criterio: unknown key; did you mean 'criterion' or 'iterations'?",
        "config: prune.budget: mac: unknown metric; did you mean 'macs'?",
        "config: prune.round_to: expected a whole number of at least 1, or auto: what the device "
        "likes; got 0",
        "config: finetune.epochs: expected a valid integer, unable to parse string as an integer; "
        "got 'many'",
        "config: finetune.distill.alfa: unknown key; did you mean 'alpha'?",
        "config: devise: unknown key; did you mean 'device'?",
    ]


def test_missing_parts_are_named() -> None:
    assert problems({"model": {}}) == [
        "config: model.name: missing; a value is required",
        "config: data: missing; expected a mapping",
        "config: method: missing; expected a mapping with name",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "one_sot"}, "method: unknown method 'one_sot'; did you mean 'one_shot'?"),
        (
            {"method": {"criterion": "l1"}},
            "method: expected a mapping with a name, one of abc, apoz",
        ),
        (
            {"method": {"name": "one_shot", "criterion": "l3"}},
            "method.criterion: unknown criterion 'l3'; known: apoz",
        ),
        ({"prune": {}}, "prune.budget: one_shot needs a budget, such as {macs: 0.5}, or ratios"),
        ({"prune": {"budget": {"macs": -1}}}, "prune.budget: macs: got -1.0; expected a fraction"),
        ({"prune": {"ratios": {"a": 1.5}}}, "expected dropped fractions in [0, 1), got a: 1.5"),
        ({"model": {"name": "resnet20_cifar"}}, "baseline: the network has no weights; expected"),
        ({"baseline": {"epochs": 1}}, "baseline: model.weights are given too; expected one"),
        ({"method": {"name": "slimming"}}, "method.train: start scratch needs training options"),
        (
            {"method": {"name": "slimming", "ratio": 0.4, "train": {}}},
            "prune.budget: not a part of the published rule (method.ratio)",
        ),
        ({"device": "gpu"}, "device: string should match pattern"),
        (
            {"model": {"name": "resnet20_cifar", "weights": "a", "options": {"num_classes": 9}}},
            "model.options: num_classes is not one of them; expected model.num_classes",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], expected: str) -> None:
    (line,) = problems(SMALL | change)

    assert expected in line


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("data.cache", True, "a folder, false for none or null for the usual one"),
        ("data.augment", "weak", "true, false or standard"),
        ("data.validation", 1.5, "a fraction below 1 or a count, or 0 for none"),
        ("finetune.capture", "yes", "true, false or auto"),
        ("finetune.capture", 1, "true, false or auto"),
        (
            "prune.min_channels",
            "few",
            "a count of channels or a fraction below 1",
        ),
        ("data.workers", True, "a whole number"),
        ("data.batch_size", True, "a whole number"),
        ("data.max_bad_images", True, "a whole number"),
        ("data.cache_limit", True, "a number"),
        ("finetune.epochs", True, "a whole number"),
        ("finetune.distill.alpha", True, "a number"),
        ("method.iterations", True, "a whole number"),
        ("prune.min_channels", True, "a number"),
        ("prune.budget", {"macs": True}, "numbers"),
        ("latency.repeats", False, "a whole number"),
        ("seed", True, "a whole number"),
    ],
)
def test_a_mistake_is_one_line_with_what_would_be_right(
    field: str, value: object, right: str
) -> None:
    path = tuple(field.split("."))

    assert problems(overlaid(SMALL, [(path, value)])) == [
        f"config: {field}: expected {right}; got {value!r}"
    ]


def options_of(kind: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every options model inside one, by its path."""
    yield path, kind
    for name, field in kind.model_fields.items():
        for inner in {*typing.get_args(field.annotation), field.annotation}:
            if isinstance(inner, type) and issubclass(inner, Options):
                yield from options_of(inner, f"{path}{name}.")


@pytest.mark.parametrize(
    "kind", [RunConfig, *(methods.registry.get(name).options for name in methods.registry.names())]
)
def test_no_option_says_two_lines_of_one_mistake(kind: type[BaseModel]) -> None:
    for path, model in options_of(kind):
        for name in model.model_fields:
            # A method's options are told by its name; those of a network by the network.
            if (kind, path, name) in {(RunConfig, "", "method"), (RunConfig, "model.", "options")}:
                continue
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: object()})
            wrong = [error["loc"] for error in caught.value.errors() if error["loc"][0] == name]
            assert wrong == [(name,)], path + name


def test_overrides_are_yaml_and_reach_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, to_yaml(make_config(SMALL)))
    config = load_config(
        path,
        [
            "finetune.lr=1e-4",
            "finetune.distill.alpha=1",
            "prune.ratios={layer1.*: 0.25}",
            "method=slimming",
            "method.start=baseline",
            "seed=3",
        ],
    )

    assert config.finetune is not None
    assert config.finetune.lr == 1e-4
    assert config.finetune.distill is not None
    assert config.prune.ratios == {"layer1.*": 0.25}
    assert isinstance(config.method, SlimmingOptions)
    assert config.seed == 3


def test_numbers_without_a_dot_are_numbers_in_free_options_too() -> None:
    assert parse_overrides(["a.b=1e-4", "c=[1e6, 2]", "d=1e", "e="]) == [
        (("a", "b"), 1e-4),
        (("c",), [1e6, 2]),
        (("d",), "1e"),
        (("e",), None),
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune", "finetune: expected key=value"),
        ("=3", "=3: expected key=value"),
        ("a..b=3", "a..b=3: expected key=value"),
        ("a=[1", "a=[1: the value is not valid YAML"),
        ("seed.x=3", "seed.x: seed is 0, not a mapping"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, override: str, expected: str) -> None:
    path = written(tmp_path, to_yaml(make_config(SMALL)))

    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])

    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("- a", "expected a mapping of options, got a list"),
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2", "the key 'seed' is given twice"),
        ("a: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration_are_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))

    (line,) = caught.value.problems
    assert expected in line
    assert "\n" not in line


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_config(tmp_path / "b.yaml")


def test_the_schema_knows_every_method_and_is_json() -> None:
    schema = json_schema()
    json.dumps(schema)
    methods = {
        choice["properties"]["name"]["const"]: choice
        for choice in schema["properties"]["method"]["oneOf"]
    }

    assert {"one_shot", "slimming"} <= set(methods)
    assert "ratio" in methods["slimming"]["properties"]
    assert "TrainingOptions" in schema["$defs"]


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.yaml")))
def test_the_configurations_that_come_with_it_are_valid(path: Path) -> None:
    config = load_config(path)

    assert load_config(path) == config


def commented_overrides() -> list[Any]:
    """Configurations, and overrides that their comments offer."""
    found = []
    for file in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")):
        comment = "\n".join(re.findall(r"^# ?(.*)$", file.read_text(), re.MULTILINE)) + "\n"
        offers = re.findall(r"^(?:Shortened|.*recipe): (.*\n(?:  .*\n)*)", comment, re.MULTILINE)
        found += [pytest.param(file, offer.split(), id=file.stem) for offer in offers]
    return found


@pytest.mark.parametrize(("file", "overrides"), commented_overrides())
def test_overrides_that_comments_offer_are_valid(file: Path, overrides: list[str]) -> None:
    assert all("=" in override for override in overrides)
    load_config(file, overrides)


def test_whole_numbers_that_nothing_counts_to_are_refused() -> None:
    data = {"name": "digits", "batch_size": 2**60}
    large, kept, seed = problems(
        SMALL | {"data": data, "prune": {"keep": [10**5000]}, "seed": 2**53 + 1}
    )

    expected = "expected a whole number of at most 2^53, got"
    assert large == f"config: data.batch_size: {expected} 0x1000000000000000"
    assert kept.startswith(f"config: prune.keep.0: {expected} 0x")
    assert len(kept) < 200
    assert seed == f"config: seed: {expected} 0x20000000000001"
    assert make_config(SMALL | {"seed": 2**53}).seed == 2**53


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"finetune": {"distill": {"temperature": 1e300}}}, "finetune.distill.temperature: "),
        ({"method": {"name": "abc", "food_number": 2**40}}, "method.food_number: "),
        ({"method": {"name": "abc", "parallel": 2**40}}, "method.parallel: "),
        ({"method": {"name": "metapruning", "population": 2**40}}, "method.population: "),
        ({"data": {"name": "digits", "cache_limit": 1e300}}, "data.cache_limit: "),
    ],
)
def test_what_no_memory_or_float_can_hold_is_refused(
    changed: dict[str, Any], expected: str
) -> None:
    assert any(
        line.startswith(f"config: {expected}expected less than or equal to")
        for line in problems(SMALL | changed)
    )


@pytest.mark.parametrize("value", ["2024-13-45", "9" * 5000, "[" * 2000], ids=len)
def test_yaml_that_stands_for_nothing_is_said_to_be_wrong(value: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"seed: {value}\n")

    with pytest.raises(ConfigError, match=rf"^{file}: not valid YAML: "):
        load_config(file)
    with pytest.raises(ConfigError, match="the value is not valid YAML: "):
        parse_overrides([f"seed={value}"])


def test_more_threads_than_a_process_can_have_are_refused() -> None:
    (line,) = problems(SMALL | {"threads": 100_000})

    assert line == "config: threads: expected less than or equal to 1024; got 100000"
