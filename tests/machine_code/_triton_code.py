"""Compiles Triton kernels for GPUs that are not there and reads the machine code."""

from __future__ import annotations

import importlib
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import _table
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from fastprune.kernels.triton._variant import Variant
from fastprune.ops import registered
from fastprune.testing.ops import OpCase, cases_of

__all__ = [
    "ARCHITECTURES",
    "Code",
    "Launch",
    "compile_variant",
    "compiler",
    "global_loads",
    "launches",
    "local_instructions",
    "modules",
    "most_launches",
    "ops",
    "variants_of",
]

ARCHITECTURES = (80, 90)
KERNELS = Path(__file__).parents[2] / "kernels" / "triton"


@dataclass(frozen=True, slots=True)
class Code:
    """What one compilation became.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread in local memory: spills and arrays with run-time indices.
        shared: bytes of a program in shared memory.
        load: bits of the widest load from global memory; 0 without any.
        store: bits of the widest store to it.
        cubin: the machine code.
    """

    registers: int
    stack: int
    shared: int
    load: int
    store: int
    cubin: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch that a launcher asked for.

    Attributes:
        kernel: the ``@triton.jit`` function.
        constants: of its constexpr arguments, and of arguments that Triton made constant.
        warps, stages: as asked for.
        programs: size of the grid.
        code: what it was compiled to.
    """

    kernel: Any
    constants: dict[str, Any]
    warps: int
    stages: int
    programs: int
    code: Code


def compiler() -> str:
    """``"triton 3.9"``: it brings its own assembler."""
    return f"triton {_table.version(triton.__version__)}"


def modules() -> list[str]:
    """Stems of the files in kernels/triton."""
    return sorted(p.stem for p in KERNELS.glob("*.py") if not p.name.startswith("_"))


def variants_of(module: str) -> tuple[Variant, ...]:
    """What ``variants()`` of a file gives; nothing where it has no such function."""
    loaded = importlib.import_module(f"fastprune.kernels.triton.{module}")
    return tuple(getattr(loaded, "variants", tuple)())


def ops() -> list[str]:
    """Names of the ops that have a Triton implementation."""
    return [
        name
        for name, op in registered().items()
        if any(i.backend == "triton" for i in op.implementations)
    ]


def most_launches(op: str) -> int:
    """Of one call, over the op's small cases."""
    cases = [case for case in cases_of(op) if not case.large]
    return max(len(launches(op, case) or ()) for case in cases)


def compile_variant(variant: Variant, architecture: int) -> Code:
    """The machine code of a variant for ``sm_<architecture>``; needs neither GPU nor driver."""
    names = variant.kernel.arg_names
    numbers = {name for name, kind in variant.signature.items() if kind != "constexpr"}
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature[name] for name in names},
        constexprs=dict(variant.constants),
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name in variant.aligned
            if name in numbers
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": variant.warps, "num_stages": variant.stages},
    )
    return _code(compiled)


def launches(op: str, case: OpCase, architecture: int = 90) -> list[Launch] | None:
    """The launches of a case's call, each compiled as on a GPU but not run.

    Triton specialises on the arguments themselves: integers of one become constants, multiples of
    sixteen widen loads. The interpreter does neither, so this alone shows what a GPU would be
    given. The tensors are on the CPU; launchers look at shapes and addresses alone.

    Returns:
        None where the implementation does not take the arguments.
    """
    implementation = next(i for i in registered()[op].implementations if i.backend == "triton")
    kernel = registered()[op].kernel(implementation)
    assert not isinstance(kernel, str), kernel
    arguments = case.make(torch.device("cpu"), torch.Generator().manual_seed(0))
    if implementation.unsupported(*arguments) is not None:
        return None
    with _captured(architecture) as found:
        kernel(*arguments)
    return found


class _NoDevice:
    """The driver of a device that only its architecture is known of."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


@contextmanager
def _captured(architecture: int) -> Iterator[list[Launch]]:
    found: list[Launch] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        constants = {self.arg_names[at[0]]: v for at, v in compiled.src.constants.items()}
        if callable(grid):
            # As Triton calls it: with the arguments by name, the constants among them.
            grid = grid(dict(zip(self.arg_names, arguments, strict=False)) | options)
        facts = compiled.metadata
        found.append(
            Launch(
                kernel=self,
                constants=constants,
                warps=facts.num_warps,
                stages=facts.num_stages,
                programs=math.prod(grid),
                code=_code(compiled),
            )
        )
        return compiled

    JITFunction.run = compile_only
    driver.set_active(_NoDevice(architecture))
    try:
        yield found
    finally:
        JITFunction.run = run
        driver.set_active(active)


def _code(compiled: Any) -> Code:
    return _read(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared)


@cache
def _read(cubin: bytes, ptx: str, shared: int) -> Code:
    said = _cuobjdump("--dump-resource-usage", cubin)
    usage = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", said)}
    return Code(
        registers=usage["REG"],
        # STACK holds spills too; LOCAL is memory asked for by name.
        stack=usage["STACK"] + usage["LOCAL"],
        # Triton's is dynamic: the assembler does not know of it.
        shared=shared,
        load=max(_widths(ptx, r"ld"), default=0),
        store=max(_widths(ptx, r"st"), default=0),
        cubin=cubin,
    )


def _widths(ptx: str, instruction: str) -> Iterator[int]:
    """Bits of every access to global memory: the assembler never joins what PTX has apart."""
    pattern = rf"\b{instruction}\.(?:[\w:]+\.)*?global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfus](\d+)\b"
    for count, bits in re.findall(pattern, ptx):
        yield int(count or 1) * int(bits)
    if instruction == "ld":
        for size in re.findall(r"cp\.async\.\w+\.shared\S*global\S*\s[^;]*?,[^;]*?, (\w+)", ptx):
            yield 8 * int(size, 0)


def local_instructions(cubin: bytes) -> set[str]:
    """Loads from and stores to local memory."""
    return set(re.findall(r"\b(?:LDL|STL)\b\S*", _cuobjdump("--dump-sass", cubin)))


def global_loads(cubin: bytes) -> set[str]:
    """Loads from global memory, ``LDG.E.128`` and the like, and asynchronous copies."""
    return set(re.findall(r"\b(?:LDG|LDGSTS)\b[.\w]*", _cuobjdump("--dump-sass", cubin)))


@cache
def _cuobjdump(option: str, cubin: bytes) -> str:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        raise FileNotFoundError(f"cuobjdump is neither at {bundled} nor on PATH")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, option, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} {option}: {done.stderr.strip()}")
    return done.stdout
