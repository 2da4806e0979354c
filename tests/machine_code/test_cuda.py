"""Each csrc/cuda/*.cu as every architecture gets it: registers and spills, by ``ptxas -v``.

No GPU is needed. ``python tests/machine_code/table.py --write`` rewrites the table.
"""

from __future__ import annotations

import re
from pathlib import Path

import _cuda_code as code
import _table
import pytest

TABLE = _table.read(_table.CUDA)
OTHER = _table.compiler(_table.CUDA) != code.compiler()

needs_nvcc = pytest.mark.skipif(code.missing() is not None, reason=str(code.missing()))


@needs_nvcc
@pytest.mark.parametrize("architecture", code.ARCHITECTURES)
@pytest.mark.parametrize("source", code.sources(), ids=lambda source: source.stem)
def test_machine_code(source: Path, architecture: int) -> None:
    kernels = code.compile_source(source, architecture)

    prefix, suffix = f"{source.stem}/", f"/sm_{architecture}"
    listed = {name for name in TABLE if name.startswith(prefix) and name.endswith(suffix)}
    assert listed == {f"{prefix}{name}{suffix}" for name in kernels}, _table.COMMAND
    for name, found in kernels.items():
        entry = TABLE[f"{prefix}{name}{suffix}"]
        assert found.spills == 0, f"{name}: {found.spills} bytes of spills"
        assert found.stack == 0, f"{name}: {found.stack} bytes of stack"
        wrong = [
            _table.excess(entry, "registers", found.registers, other=OTHER),
            _table.excess(entry, "shared", found.shared, other=OTHER),
        ]
        assert not any(wrong), f"{name}: " + "; ".join(w for w in wrong if w)


def test_the_table_has_no_entry_too_many() -> None:
    stems = {source.stem for source in code.sources()}

    assert {name.partition("/")[0] for name in TABLE} <= stems, _table.COMMAND


def test_architectures_are_those_of_the_build() -> None:
    setup = (code.ROOT / "setup.py").read_text()
    line = re.search(r"^ARCHITECTURES = (.*)$", setup, re.MULTILINE)

    assert line is not None
    assert re.findall(r"\d+", line[1]) == [str(a) for a in code.ARCHITECTURES]


def test_a_report_is_read() -> None:
    said = """
ptxas info    : Compiling entry function '_ZN9fastprune4cuda41_GLOBAL__N__2de836c3_9_device_cu_c93396094copyIiEEvPT_' for 'sm_75'
ptxas info    : Function properties for _ZN9fastprune4cuda41_GLOBAL__N__2de836c3_9_device_cu_c93396094copyIiEEvPT_
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 4 registers, used 1 barriers, 256 bytes smem, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_Z5otherPi' for 'sm_75'
ptxas info    : Function properties for _Z5otherPi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""  # noqa: E501

    assert code.parse(said) == {
        "copy-IiEEvPT_": code.Kernel(registers=4, stack=16, spills=12, shared=256),
        "other": code.Kernel(registers=255, stack=0, spills=0, shared=0),
    }


@pytest.mark.parametrize(("registers", "most"), [(8, 16), (28, 32), (32, 40), (120, 136)])
def test_a_ceiling_leaves_a_tenth(registers: int, most: int) -> None:
    assert _table.ceiling(registers) == most


def test_a_figure_past_the_table_is_named_with_the_command() -> None:
    assert _table.excess({"registers": 32}, "registers", 32) is None
    assert _table.excess({"load": 128}, "load", 128, least=True) is None
    assert _table.excess({"registers": 32}, "registers", 48, other=True) is None
    assert _table.excess({"load": 128}, "load", 64, least=True, other=True) is not None
    told = _table.excess({"registers": 32}, "registers", 40)
    assert told is not None
    assert "registers: 40, at most 32" in told
    assert _table.COMMAND in told
