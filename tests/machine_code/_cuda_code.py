"""Compiles csrc/cuda/*.cu to machine code and reads what the assembler says of each kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "ARCHITECTURES",
    "Kernel",
    "compile_source",
    "compiler",
    "kernel_name",
    "missing",
    "sources",
]

ROOT = Path(__file__).parents[2]

# Those of setup.py.
ARCHITECTURES = (75, 80, 86, 89, 90)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What ``ptxas -v`` says: registers of a thread; bytes of stack, spills, shared memory."""

    registers: int
    stack: int
    spills: int
    shared: int


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    for place in (
        os.environ.get("CUDACXX"),
        home and str(Path(home, "bin", "nvcc")),
        "nvcc",
        "/usr/local/cuda/bin/nvcc",
    ):
        if place and (found := shutil.which(place)):
            return found
    return None


def missing() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    return None if nvcc() else "nvcc was not found"


@cache
def compiler() -> str | None:
    """``"nvcc 13.0"``, or None where there is none."""
    tool = nvcc()
    if tool is None:
        return None
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return f"nvcc {_search(r'release ([0-9.]+)', said)}"


@cache
def compile_source(source: Path, architecture: int) -> dict[str, Kernel]:
    """Every kernel of a file by its name, compiled as setup.py compiles it."""
    tool = nvcc()
    assert tool is not None
    flags = ["-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [tool, "-cubin", "-Xptxas", "-v", *flags, "-o", f"{folder}/x.cubin", str(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{source.name} for sm_{architecture}: {done.stdout}")
    return parse(done.stdout)


def parse(said: str) -> dict[str, Kernel]:
    """The kernels of a report of ``ptxas -v``."""
    found: dict[str, Kernel] = {}
    for part in re.split(r"Compiling entry function ", said)[1:]:
        mangled = re.match(r"'([^']+)'", part)
        assert mangled is not None, part
        stack, stores, loads = (
            int(_search(rf"(\d+) bytes {what}", part))
            for what in ("stack frame", "spill stores", "spill loads")
        )
        found[kernel_name(mangled[1])] = Kernel(
            registers=int(_search(r"Used (\d+) registers", part)),
            stack=stack,
            spills=stores + loads,
            shared=int(_search(r"(\d+) bytes smem", part, "0")),
        )
    return found


def _search(pattern: str, text: str, default: str | None = None) -> str:
    match = re.search(pattern, text)
    if match is not None:
        return match[1]
    if default is None:
        raise ValueError(f"ptxas -v: expected {pattern!r} in {text!r}")
    return default


def kernel_name(mangled: str) -> str:
    """A kernel's own name, then its template arguments and parameters as the ABI writes them.

    Unnamed namespaces are mangled with a hash of the file's place, which no table may hold.
    """
    plain = re.sub(r"\d+_GLOBAL__N__[0-9a-f]{8}_\w+?_cu_[0-9a-f]{8}", "", mangled)
    rest = plain.removeprefix("_ZN") if plain.startswith("_ZN") else plain.removeprefix("_Z")
    name = mangled
    while (size := re.match(r"\d+", rest)) is not None:
        end = size.end() + int(size[0])
        name, rest = rest[size.end() : end], rest[end:]
    return name if name == mangled or not rest.startswith("I") else f"{name}-{rest}"
