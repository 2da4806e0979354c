"""Triton kernels as sm_80 and sm_90 get them: registers, local memory, width of loads.

No GPU and no driver is needed. ``python tests/machine_code/table.py --write`` rewrites the table.
"""

from __future__ import annotations

import os

import _table
import pytest

pytest.importorskip("triton", reason="triton is not installed: torch's CUDA builds bring it")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter is on: it compiles nothing", allow_module_level=True)

import _triton_code as code

from fastprune.kernels.triton._variant import Variant
from fastprune.testing.ops import cases_of

TABLE = _table.read(_table.TRITON)
OTHER = _table.compiler(_table.TRITON) != code.compiler()

# Bytes a thread: the table's compiler spills nothing, and triton 3.8 8 to 24 in a few launches.
SPILLED = 24 if OTHER else 0

VARIANTS = [
    pytest.param(f"{module}/{variant.name}", variant, id=f"{module}-{variant.name}")
    for module in code.modules()
    for variant in code.variants_of(module)
]

OPS = code.ops()

# Bytes of shared memory that every GPU from sm_75 on gives a program without asking.
SHARED = 48 * 1024


@pytest.mark.parametrize("architecture", code.ARCHITECTURES)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_machine_code(name: str, variant: Variant, architecture: int) -> None:
    entry = TABLE.get(f"{name}/sm_{architecture}")
    assert entry is not None, f"not in {_table.TRITON.name}: {_table.COMMAND}"

    found = code.compile_variant(variant, architecture)

    assert found.stack <= SPILLED, f"{found.stack} bytes of local memory a thread"
    wrong = [
        _table.excess(entry, "registers", found.registers, other=OTHER),
        _table.excess(entry, "shared", found.shared, other=OTHER),
        _table.excess(entry, "load", found.load, least=True),
        _table.excess(entry, "store", found.store, least=True),
    ]
    assert not any(wrong), "\n".join(w for w in wrong if w)
    assert found.shared <= SHARED
    if variant.wide:
        assert found.load == 128, f"the widest load is of {found.load} bits, expected 128"


@pytest.mark.parametrize(
    ("name", "variant"), [p for p in VARIANTS if p.values[1].wide and "fp16" in p.id]
)
def test_the_disassembly_says_the_same(name: str, variant: Variant) -> None:
    """A second opinion on what is read off PTX; slow to get, so of one dtype alone."""
    cubin = code.compile_variant(variant, 90).cubin

    spilled = code.local_instructions(cubin)
    assert len(spilled) <= SPILLED // 4 * 2, spilled
    assert any(".128" in load for load in code.global_loads(cubin)), code.global_loads(cubin)


def test_the_table_has_no_entry_too_many() -> None:
    expected = {f"{p.values[0]}/sm_{a}" for p in VARIANTS for a in code.ARCHITECTURES}

    assert not set(TABLE) - expected - set(OPS), _table.COMMAND


@pytest.mark.parametrize("module", code.modules())
def test_variants_are_whole(module: str) -> None:
    variants = code.variants_of(module)

    assert variants, f"kernels/triton/{module}.py: expected a function variants() that gives some"
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names), f"two variants of one name among {names}"
    for variant in variants:
        assert set(variant.signature) == set(variant.kernel.arg_names), variant.name
        constants = {name for name, kind in variant.signature.items() if kind == "constexpr"}
        assert constants == set(variant.constants), variant.name


@pytest.mark.parametrize("op", OPS)
def test_every_launch_compiles(op: str) -> None:
    """What the cases really launch: the interpreter does not specialise on ones and sixteens."""
    counted: dict[str, int] = {}
    for case in cases_of(op):
        launches = None if case.large else code.launches(op, case)
        if launches is None:
            continue
        counted[case.name] = len(launches)
        for launch in launches:
            where = f"{op}[{case.name}] {launch.kernel.__name__}"
            assert launch.programs > 0, f"{where}: an empty grid"
            spilled = launch.code.stack
            assert spilled <= SPILLED, f"{where}: {spilled} bytes of local memory"
            assert_known(where, launch)
    assert counted, f"{op}: the Triton implementation takes none of the cases"
    wrong = _table.excess(TABLE.get(op, {"launches": 1}), "launches", max(counted.values()))
    assert wrong is None, f"{wrong}: {counted}"


def assert_known(where: str, launch: code.Launch) -> None:
    """The kernel has variants, and where one has the launch's constants, it has its warps too."""
    variants = [p.values[1] for p in VARIANTS if p.values[1].kernel is launch.kernel]
    assert variants, f"{where}: no variants() of kernels/triton names this kernel"
    same = [v for v in variants if dict(v.constants).items() <= launch.constants.items()]
    configs = {(variant.warps, variant.stages) for variant in same}
    launched = (launch.warps, launch.stages)
    assert not configs or launched in configs, (
        f"{where}: launched with (warps, stages) {launched}, its variants have {configs}"
    )
