"""YAML and ``key=value`` overrides to a RunConfig; everything that is wrong is said at once."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from fastprune import methods
from fastprune.data import DataOptions, Normalization
from fastprune.errors import ConfigError, nearest
from fastprune.latency import LatencyOptions
from fastprune.methods import MethodOptions, PruneOptions
from fastprune.options import Options
from fastprune.training import TrainingOptions

__all__ = [
    "LatencyOptions",
    "ModelOptions",
    "RunConfig",
    "checked",
    "json_schema",
    "load_config",
    "make_config",
    "overlaid",
    "parse_overrides",
    "to_yaml",
]


Checked = TypeVar("Checked", bound=BaseModel)


class ModelOptions(Options):
    """Which network, and with which weights."""

    name: str = Field(min_length=1)
    weights: str | None = Field(
        default=None, description="A file, or a name that the network's author published."
    )
    num_classes: int | None = Field(
        default=None, ge=1, description="By default as many as the dataset has."
    )
    options: dict[str, Any] = Field(default={})
    normalization: Normalization | None = Field(
        default=None,
        description="What the weights expect of their images; by default what is usual for them.",
    )

    @field_validator("options")
    @classmethod
    def _own(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("num_classes", "weights"):
            if name in options:
                raise ValueError(f"{name} is not one of them; expected model.{name}")
        return options


def _method(given: Any) -> Any:
    """The options of the method that ``name`` names; wrong ones raise with their own paths."""
    if isinstance(given, MethodOptions):
        return given
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError(
            f"expected a mapping with a name, one of {', '.join(methods.registry.names())}"
        )
    if given["name"] not in methods.registry:
        raise ValueError(
            f"unknown method {given['name']!r}{nearest(given['name'], methods.registry.names())}"
        )
    return methods.registry.get(given["name"]).options.model_validate(dict(given))


CHANGEABLE = frozenset({"max_bad_images", "pipeline", "workers", "cache", "cache_limit"})
"""Options of the data that say how images are read, and not which images a network gets."""


class RunConfig(Options):
    """One run, whole: the network, the data, how it is trained, pruned and fine-tuned."""

    model: ModelOptions
    data: DataOptions
    baseline: TrainingOptions | None = None
    method: Annotated[SerializeAsAny[MethodOptions], BeforeValidator(_method)]
    prune: PruneOptions = PruneOptions()
    finetune: TrainingOptions | None = None
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1, le=1024)
    latency: LatencyOptions = LatencyOptions()

    @model_validator(mode="after")
    def _together(self) -> RunConfig:
        found = self.method.problems(self.prune)
        if self.model.weights is None and self.baseline is None and self.method.needs_baseline:
            found.append(
                "baseline: the network has no weights; expected model.weights, or baseline: "
                "training options"
            )
        if self.model.weights is not None and self.baseline is not None:
            found.append("baseline: model.weights are given too; expected one of the two")
        if self.method.keeps_zeros and self.finetune is not None:
            found.append(
                f"finetune: weights that method {self.method.name} holds at zero would not stay "
                "so; expected none (the method trains its network itself)"
            )
        if self.method.ensemble and self.finetune is not None and self.finetune.focus is not None:
            found.append(
                f"finetune.focus: each network of method {self.method.name} is for its own "
                "classes; expected none"
            )
        if self.method.needs_validation and not self.data.validation:
            found.append(
                f"data.validation: got 0, but method {self.method.name} chooses by validation "
                "images; expected a fraction or a count above 0"
            )
        if found:
            raise ValueError("\n".join(found))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, mappings, numbers and strings, every default filled in."""
        return self.model_dump(mode="json")

    def essence(self) -> dict[str, Any]:
        """`to_dict` without what may be changed when a run goes on."""
        found = self.to_dict()
        found["data"] = {k: v for k, v in found["data"].items() if k not in CHANGEABLE}
        return found


class _Loader(yaml.SafeLoader):
    """YAML where ``1e-4`` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# PyYAML follows YAML 1.1, where floats need a dot and a signed exponent: `1e-4` would be a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file with ``key=value`` overrides laid over it.

    Raises:
        ConfigError: the file is missing, empty or not YAML, or fields are wrong: a line each.
    """
    file = Path(path)
    if not file.is_file():
        there = "a folder; expected a YAML file" if file.is_dir() else "no such configuration file"
        raise ConfigError(f"{file}: {there}")
    try:
        given = _parsed(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not a text file; expected YAML") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {_one_line(error)}") from None
    if given is None:
        raise ConfigError(f"{file}: the file is empty; expected at least model, data and method")
    if not isinstance(given, dict):
        raise ConfigError(f"{file}: expected a mapping of options, got a {type(given).__name__}")
    return make_config(overlaid(given, parse_overrides(overrides)), source=str(file))


def make_config(given: Mapping[str, Any], *, source: str = "config") -> RunConfig:
    """The configuration a mapping spells out.

    Raises:
        ConfigError: every wrong field, a line each.
    """
    return checked(RunConfig, given, source=source)


def checked(kind: type[Checked], given: Mapping[str, Any], *, source: str) -> Checked:
    """Options of any kind from a mapping.

    Raises:
        ConfigError: every wrong field, a line each that begins with ``source``.
    """
    # First, and alone: Python does not even write down numbers of thousands of digits.
    if lines := list(_too_large(given)):
        raise ConfigError([f"{source}: {line}" for line in lines])
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        found = [_problem(detail, kind, given) for detail in error.errors(include_url=False)]
        lines = [line for problem in found for line in problem.split("\n")]
        raise ConfigError([f"{source}: {line}" for line in dict.fromkeys(lines)]) from None


def parse_overrides(overrides: Iterable[str]) -> list[tuple[tuple[str, ...], Any]]:
    """``["finetune.epochs=3"]`` -> ``[(("finetune", "epochs"), 3)]``; values are YAML.

    Raises:
        ConfigError: an override without ``=``, without a key, or whose value is not YAML.
    """
    parsed: list[tuple[tuple[str, ...], Any]] = []
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            problems.append(f"{override}: expected key=value, such as finetune.epochs=3")
            continue
        try:
            parsed.append((path, _parsed(text)))
        except yaml.YAMLError as error:
            problems.append(f"{override}: the value is not valid YAML: {_one_line(error)}")
    if problems:
        raise ConfigError(problems)
    return parsed


def overlaid(
    given: Mapping[str, Any], overrides: Iterable[tuple[tuple[str, ...], Any]]
) -> dict[str, Any]:
    """``given`` with every override put in its place; mappings on the way are made."""
    result = dict(given)
    for path, value in overrides:
        here = result
        for depth, key in enumerate(path[:-1]):
            inner = here.get(key)
            if isinstance(inner, str) and path[:1] == ("method",) and depth == 0:
                inner = {"name": inner}
            if inner is not None and not isinstance(inner, dict):
                stem = ".".join(path[: depth + 1])
                raise ConfigError(f"{'.'.join(path)}: {stem} is {inner!r}, not a mapping")
            here[key] = dict(inner or {})
            here = here[key]
        here[path[-1]] = value
    return result


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML; loading it gives an equal one."""
    text: str = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, width=99)
    return text


def json_schema() -> dict[str, Any]:
    """JSON schema of a configuration file, for editors; ``method`` is any registered one."""
    schema = RunConfig.model_json_schema()
    choices = []
    for name in methods.registry.names():
        part = methods.registry.get(name).options.model_json_schema(
            ref_template="#/$defs/{model}",
        )
        schema.setdefault("$defs", {}).update(part.pop("$defs", {}))
        part["properties"]["name"] = {"const": name}
        part["required"] = sorted({*part.get("required", ()), "name"})
        choices.append(part)
    schema["properties"]["method"] = {"oneOf": choices, "title": "Method"}
    schema["title"] = "fastprune run configuration"
    return schema


_LARGEST = 2**53
"""Larger whole numbers do not come back from every reader of JSON, nor do all libraries count so
far."""


def _too_large(given: Any, where: str = "") -> Iterator[str]:
    """A line for every whole number that is too large."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from _too_large(value, f"{where}.{key}" if where else str(key))
    elif isinstance(given, (list, tuple)):
        for place, value in enumerate(given):
            yield from _too_large(value, f"{where}.{place}")
    elif isinstance(given, int) and abs(given) > _LARGEST:
        yield f"{where}: expected a whole number of at most 2^53, got {hex(given)[:40]}"


def _problem(detail: ErrorDetails, kind: type[BaseModel], given: Mapping[str, Any]) -> str:
    """One line: where, what is wrong, what was given and what would be right."""
    where = ".".join(str(part) for part in detail["loc"]) or "config"
    wrong = detail["type"]
    if wrong == "extra_forbidden":
        model = _model_at(detail["loc"][:-1], kind, given)
        known = [] if model is None else list(model.model_fields)
        return f"{where}: unknown key{nearest(str(detail['loc'][-1]), known)}"
    if wrong == "missing":
        model = _model_at(detail["loc"][:-1], kind, given)
        return f"{where}: missing; {_expectation(model, str(detail['loc'][-1]))}"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = message[:1].lower() + message[1:]
    if wrong == "value_error":
        if not detail["loc"]:
            return str(detail["ctx"]["error"])
        return f"{where}: {message}"
    return f"{where}: {message}; got {detail['input']!r}"


def _expectation(model: type[BaseModel] | None, field: str) -> str:
    info = model.model_fields.get(field) if model is not None else None
    inner = _models_in(info.annotation) if info is not None else []
    if inner:
        required = [name for name, field in inner[0].model_fields.items() if field.is_required()]
        return "expected a mapping" + (f" with {', '.join(required)}" if required else "")
    return "a value is required"


def _model_at(
    loc: tuple[int | str, ...], kind: type[BaseModel], given: Mapping[str, Any]
) -> type[BaseModel] | None:
    """The options model that stands at a path of the configuration."""
    model = kind
    for part in loc:
        if model is RunConfig and part == "method":
            method = given["method"]
            name = method if isinstance(method, str) else method["name"]
            model = methods.registry.get(name).options
            continue
        info = model.model_fields.get(str(part))
        inner = _models_in(info.annotation) if info is not None else []
        if not inner:
            return None
        model = inner[0]
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [m for a in typing.get_args(annotation) for m in _models_in(a)]
    return []


def _parsed(text: str) -> Any:
    """What YAML spells out; whatever else is wrong with it is a YAMLError too."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:
        # Dates such as 2024-13-45, numbers of thousands of digits, brackets in brackets.
        raise yaml.YAMLError(str(error)) from None


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())
