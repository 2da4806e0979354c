"""What was asked of a run, what its method noted, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastprune.config import RunConfig, to_yaml
from fastprune.run.html.blocks import Block, Code, Column, Section, Table
from fastprune.run.html.content import RunContent

__all__ = ["asked", "given_options", "noted", "repeating", "spelt"]

_LONGEST = 400
_ELSEWHERE = ("front",)
"""Notes that a section of their own has."""


def asked(run: RunContent) -> Section:
    """What was asked for: all options that are not the default, and the whole configuration."""
    columns = (Column("option", "option"), Column("value", "value"))
    rows = tuple((name, spelt(value)) for name, value in given_options(run.config).items())
    return Section(
        "What was asked",
        (
            Table("asked", "Options that are not the default", columns, rows),
            Code("The whole configuration", to_yaml(run.config), folded=True),
        ),
    )


def noted(run: RunContent) -> Section | None:
    """What the method noted beside its plan."""
    rows = tuple(
        (name.replace("_", " "), spelt(value))
        for name, value in run.notes.items()
        if name not in _ELSEWHERE
    )
    if not rows:
        return None
    columns = (Column("note", "note"), Column("value", "value"))
    caption = f"Notes of method {run.config.method.name}"
    return Section("What the method noted", (Table("notes", caption, columns, rows),))


def repeating(run: RunContent) -> Section:
    """The command, and what it ran on."""
    verb = "goes on with" if run.report is None else "repeats"
    blocks: list[Block] = [Code(f"The command that {verb} this run", run.command)]
    columns = (Column("what", "what"), Column("value", "value"))
    rows = tuple((name, spelt(value)) for name, value in _environment(run))
    if rows:
        blocks.append(Table("environment", "What it ran on", columns, rows))
    return Section("Repeating it", tuple(blocks))


def given_options(config: RunConfig) -> dict[str, Any]:
    """The options that are not the default, by their dotted names, in the order of interest."""
    given = config.model_dump(mode="json", exclude_defaults=True)
    # A method's name is the default of its own options.
    named = {"method.name": config.method.name, **dict(_flattened(given))}
    return dict(sorted(named.items(), key=_place))


def _flattened(options: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The options of nested mappings by their dotted names."""
    for key, value in options.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            yield from _flattened(value, name)
        else:
            yield name, value


def spelt(value: Any) -> str:
    """A value as JSON; words without quotes, what is long cut short."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _environment(run: RunContent) -> Iterator[tuple[str, Any]]:
    for name, value in run.environment.items():
        if name == "packages" and isinstance(value, Mapping):
            yield from value.items()
        elif name == "command" and isinstance(value, list):
            yield "first command", " ".join(map(str, value))
        else:
            yield name, value
    if run.report is None:
        return
    if latency := run.latency:
        yield "latency measured on", latency["device"]
        yield "its threads", latency["threads"]
        if "mode" in latency:
            yield "its mode", latency["mode"]
    kinds = run.report["pipelines"]
    yield "input pipelines", ", ".join(f"{part}: {kind}" for part, kind in kinds.items())
    shown = run.report["normalization"]
    yield (
        "normalisation",
        f"mean {shown['mean']}, std {shown['std']} (from the {shown['source']})",
    )


_ORDER = ("model", "data", "method", "prune", "baseline", "finetune")


def _place(row: tuple[str, Any]) -> tuple[int, str]:
    part = row[0].partition(".")[0]
    return (_ORDER.index(part) if part in _ORDER else len(_ORDER)), part
