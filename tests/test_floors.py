"""Imports go downwards only: the floors of docs/architecture.md, read from the sources.

Every import of a file counts, inside functions and under ``TYPE_CHECKING`` too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1]

# From the ground up; inside one floor a later part may import an earlier one, but on floor 3.
FLOORS: dict[int, tuple[str, ...]] = {
    0: ("_C", "errors", "records", "files", "registry", "options", "processor", "kernels"),
    1: ("ops", "nn"),
    2: ("graph",),
    3: ("search", "criteria", "models", "data"),
    4: ("distributed", "training", "latency", "pruning", "artifact"),
    5: ("methods",),
    6: ("config", "run", "doctor"),
    7: ("cli", "__main__"),
}
ORDER = [part for parts in FLOORS.values() for part in parts]
APART = set(FLOORS[3])

# Parts that may import less than their floor allows.
ONLY: dict[str, set[str]] = {
    "errors": set(),
    "records": {"errors"},
    "files": {"errors", "records"},
    "registry": {"errors", "records"},
    "options": set(),
    "processor": set(),
    "kernels": {"errors", "records"},
    "search": {"errors", "records", "registry"},
    "cli": {"errors", "config", "run", "doctor"},
    "__main__": {"cli"},
}

# Parts that must work without torch: whole third-party packages that they may import.
PACKAGES: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "registry": set(),
    "options": {"pydantic"},
    "search": {"numpy", "pydantic"},
}


def sources() -> list[Path]:
    return sorted([*SOURCES.glob("fastprune/**/*.py"), *SOURCES.glob("kernels/**/*.py")])


def part_of(path: Path) -> str:
    """The part of the house a source belongs to: "graph", "cli", "kernels"."""
    inside = path.relative_to(SOURCES).parts
    return "kernels" if inside[0] == "kernels" else inside[1].removesuffix(".py")


def package_of(path: Path) -> list[str]:
    """The dotted package that relative imports of a source start from."""
    inside = list(path.relative_to(SOURCES).parts[:-1])
    return ["fastprune", *inside] if inside[0] == "kernels" else inside


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called == "import_module" and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def allowed(part: str) -> set[str]:
    """The other parts that one part may import."""
    if part == "testing":
        return set(ORDER) - set(FLOORS[7])
    below = set(ORDER[: ORDER.index(part)])
    if part in APART:
        below -= APART
    return below & ONLY[part] if part in ONLY else below


def violations(part: str, text: str, package: list[str]) -> list[str]:
    """Imports of one source that its floor does not allow: ``line: name``."""
    wrong = []
    for line, name in imports(ast.parse(text), package):
        top, _, rest = name.partition(".")
        if top != "fastprune":
            free = part not in PACKAGES or top in sys.stdlib_module_names or top == "__future__"
            if not free and top not in PACKAGES[part]:
                wrong.append(f"{line}: {name}")
            continue
        target = rest.partition(".")[0]
        # The package's own lazy front is above every floor; its version is plain text.
        if target not in {part, "__version__"} and target not in allowed(part):
            wrong.append(f"{line}: {name}")
    return wrong


def test_every_source_has_a_floor() -> None:
    parts = {part_of(path) for path in sources()} - {"__init__", "testing"}

    assert parts <= set(ORDER), "give each new part a floor here and in docs/architecture.md"


def test_imports_go_downwards() -> None:
    wrong = {}
    for path in sources():
        # fastprune/__init__.py names things lazily, for users.
        if part_of(path) != "__init__":
            found = violations(part_of(path), path.read_text("utf-8"), package_of(path))
            if found:
                wrong[str(path.relative_to(SOURCES))] = found

    assert wrong == {}


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("graph", "def f():\n    from fastprune.training import fit"),
        ("graph", "from ..models import build"),
        ("criteria", "import fastprune.data"),
        (
            "models",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fastprune.run",
        ),
        ("data", "import importlib\nimportlib.import_module('fastprune.training.trainer')"),
        ("search", "import torch"),
        ("records", "import torch"),
        ("kernels", "from fastprune.registry import Registry"),
        ("ops", "from fastprune.nn import Relu"),
        ("cli", "from fastprune.training import fit"),
        ("training", "import fastprune as fp"),
        ("training", "from fastprune import trace"),
        ("run", "from fastprune.testing import cases"),
        ("testing", "from fastprune.cli import app"),
    ],
)
def test_an_import_that_climbs_is_found(part: str, text: str) -> None:
    assert len(violations(part, text, ["fastprune", part])) == 1


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("graph", "from fastprune.ops import gather\nfrom .plan import PruningPlan"),
        ("graph", "from . import plan\nfrom .. import errors"),
        ("nn", "from fastprune.ops import relu"),
        ("run", "from fastprune import __version__\nfrom fastprune.config import RunConfig"),
        ("search", "from __future__ import annotations\nimport math\nimport numpy as np"),
        ("testing", "from fastprune.methods import registry"),
    ],
)
def test_an_import_downwards_is_not(part: str, text: str) -> None:
    assert violations(part, text, ["fastprune", part]) == []
