"""The build: pure Python where it must be, saying why; the compiled module where it is there."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import fastprune

SOURCES = Path(__file__).parents[1]
NO_COMPILER = {"CC": "/nowhere/cc", "CXX": "/nowhere/c++", "FASTPRUNE_BUILD_CUDA": "0"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the build reads."""
    place = tmp_path / "tree"
    unwanted = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("fastprune", "kernels", "csrc"):
        shutil.copytree(SOURCES / name, place / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCES / name, place / name)
    return place


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTPRUNE_BUILD")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def contents(tree: Path) -> tuple[set[str], dict[str, Any]]:
    """The files in the wheel, and the record of the build."""
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        return set(packed.namelist()), json.loads(packed.read("fastprune/_build.json"))


def test_pure_python_when_asked_for(tree: Path) -> None:
    stale = tree / "build"
    done = build(tree, FASTPRUNE_BUILD_EXT="0")
    assert done.returncode == 0, done.stderr
    (library,) = stale.glob("lib*")
    (library / "fastprune" / "renamed_since.py").touch()

    done = build(tree, FASTPRUNE_BUILD_EXT="0")
    files, record = contents(tree)

    assert done.returncode == 0, done.stderr
    assert not record["extension"]
    assert "FASTPRUNE_BUILD_EXT=0" in record["reason"]
    assert record["reason"] in done.stderr
    assert {"fastprune/kernels/triton/__init__.py", "fastprune/py.typed"} <= files
    assert not any(name.endswith((".so", ".pyd")) for name in files)
    assert "fastprune/renamed_since.py" not in files


def test_without_a_compiler_the_install_goes_on_and_says_so(tree: Path) -> None:
    done = build(tree, **NO_COMPILER)
    _, record = contents(tree)

    assert done.returncode == 0, done.stderr
    assert not record["extension"]
    assert "/nowhere/c" in record["reason"]
    assert "installing without fastprune._C" in done.stderr


def test_a_demanded_extension_that_cannot_be_built_fails(tree: Path) -> None:
    done = build(tree, FASTPRUNE_BUILD_EXT="1", **NO_COMPILER)

    assert done.returncode != 0
    assert not list((tree / "dist").glob("*.whl"))


def test_an_unknown_setting_is_named(tree: Path) -> None:
    done = build(tree, FASTPRUNE_BUILD_EXT="yes")

    assert done.returncode != 0
    assert "FASTPRUNE_BUILD_EXT: expected 0, 1 or nothing, got 'yes'" in done.stderr


def test_every_source_of_the_tree_is_installed() -> None:
    kernels = find_spec("fastprune.kernels")
    assert kernels is not None
    assert kernels.submodule_search_locations is not None
    places = {"fastprune": fastprune.__path__[0], "kernels": kernels.submodule_search_locations[0]}
    for folder, place in places.items():
        for source in (SOURCES / folder).rglob("*.py"):
            assert source.with_name("__init__.py").exists(), f"{source.parent} is no package"
            assert Path(place, source.relative_to(SOURCES / folder)).exists(), source


needs_extension = pytest.mark.skipif(
    find_spec("fastprune._C") is None, reason="fastprune._C was not built here"
)


@needs_extension
def test_build_info_agrees_with_the_record() -> None:
    from fastprune import _C

    info = _C.build_info()
    record = json.loads(Path(fastprune.__file__).with_name("_build.json").read_text())

    assert record["extension"]
    assert record["cuda"] == (info["cuda"] is not None)
    assert info["simd"] in info["simd_compiled"]
    assert info["compiler"] != "unknown"


@needs_extension
def test_the_cuda_part_counts_devices_or_says_why_not() -> None:
    from fastprune import _C

    if _C.build_info()["cuda"] and torch.cuda.is_available():
        assert _C.cuda_device_count() == torch.cuda.device_count()
        _C.cuda_probe(0)
    else:
        with pytest.raises(RuntimeError, match=r"cudaError|compiled without CUDA"):
            _C.cuda_device_count()
        with pytest.raises(RuntimeError, match=r"cudaError|compiled without CUDA"):
            _C.cuda_probe(0)


def test_torch_has_the_headers_where_pybind11_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The function as it stands in setup.py, which cannot be imported: it would build."""
    source = ast.parse((SOURCES / "setup.py").read_text())
    wanted = [
        node
        for node in source.body
        if (isinstance(node, ast.FunctionDef) and node.name == "find_pybind11")
        or (isinstance(node, ast.ClassDef) and node.name == "Unavailable")
    ]
    space: dict[str, Any] = {"find_spec": find_spec, "Path": Path}
    exec(compile(ast.Module(wanted, []), "setup.py", "exec"), space)
    monkeypatch.setitem(sys.modules, "pybind11", None)

    assert Path(space["find_pybind11"](), "pybind11", "pybind11.h").exists()

    space["find_spec"] = lambda name: None
    with pytest.raises(space["Unavailable"], match="pybind11 is not installed"):
        space["find_pybind11"]()
