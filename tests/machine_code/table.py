"""Measures all machine code: ``python tests/machine_code/table.py [--write]``.

Without ``--write`` it prints what it would write. Needs triton for one table and nvcc for the
other; a table whose compiler is missing is left alone.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

import _cuda_code
import _table


def triton_rows() -> dict[str, dict[str, int]]:
    import _triton_code as code

    rows: dict[str, dict[str, int]] = {}
    for module in code.modules():
        for variant in code.variants_of(module):
            for architecture in code.ARCHITECTURES:
                found = code.compile_variant(variant, architecture)
                rows[f"{module}/{variant.name}/sm_{architecture}"] = {
                    "registers": _table.ceiling(found.registers),
                    "shared": found.shared,
                    "load": found.load,
                    "store": found.store,
                }
    return rows | {op: {"launches": code.most_launches(op)} for op in code.ops()}


def cuda_rows() -> dict[str, dict[str, int]]:
    jobs = [(s, a) for s in _cuda_code.sources() for a in _cuda_code.ARCHITECTURES]
    rows: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(2) as pool:
        for (source, architecture), kernels in zip(
            jobs, pool.map(lambda job: _cuda_code.compile_source(*job), jobs), strict=True
        ):
            for name, found in kernels.items():
                rows[f"{source.stem}/{name}/sm_{architecture}"] = {
                    "registers": _table.ceiling(found.registers),
                    "shared": found.shared,
                }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the committed tables")
    wanted = parser.parse_args()
    for path, rows_of, compiler in (
        (_table.TRITON, triton_rows, _triton()),
        (_table.CUDA, cuda_rows, _cuda_code.compiler()),
    ):
        if compiler is None:
            print(f"{path.name}: left alone, its compiler is not here", file=sys.stderr)
            continue
        rows = rows_of()
        if wanted.write:
            _table.write(path, compiler, rows)
        print(f"{path.name}: {len(rows)} entries {'written' if wanted.write else ''}")
        for name, row in rows.items():
            print(f"  {name:<60} {row}")


def _triton() -> str | None:
    try:
        from _triton_code import compiler
    except ImportError:
        return None
    return compiler()


if __name__ == "__main__":
    main()
