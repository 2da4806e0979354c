"""Puts benchmarks/records/ into docs/benchmarks.md as a table: ``python benchmarks/table.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- records -->\n", "<!-- end of records -->\n"


def table(records: list[dict[str, Any]]) -> str:
    """The CPU's rows, then the GPU's, each with what they were measured on."""
    on_gpu = [r for r in records if r["name"].startswith("gpu/")]
    epochs = [r for r in records if "seconds_an_epoch" in r]
    parts = [_cpu_rows([r for r in records if r not in on_gpu])]
    if on_gpu:
        parts.append(_gpu_rows(on_gpu))
    if epochs:
        parts.append(_epoch_rows(epochs))
    return "\n".join(parts)


def _cpu_rows(records: list[dict[str, Any]]) -> str:
    rows = [
        "| benchmark | fastprune, ms | rival | rival, ms | ratio | bound |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for r in records:
        ours, rival = r["ours"], r["rival"]
        rows.append(
            f"| `{r['name']}` | {_ms(ours['min_ms'])} (n={ours['n']}) | {rival['what']} "
            f"| {_ms(rival['min_ms'])} (n={rival['n']}) | {r['ratio']:,.3g} | {r['bound']:g} |"
        )
    return _with_machines(rows, records)


def _ms(time: float) -> str:
    """Three digits of what is small: an op may take 10 µs."""
    return f"{time:,.1f}" if time >= 10 else f"{time:.3g}"


def _gpu_rows(records: list[dict[str, Any]]) -> str:
    rows = [
        "| benchmark on a GPU | fastprune, µs | against | theirs | found | bound |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for r in records:
        ours = f"{1e3 * r['ours']['min_ms']:,.1f}"
        if "fraction" in r:
            moved = f"{r['of']} bandwidth, {r['bytes'] / 1e6:,.1f} MB"
            theirs, found = f"{r['bandwidth_gb_s']:,.0f} GB/s", f"{100 * r['fraction']:.0f} %"
            limit = f"{100 * r['bound']:g} %"
        else:
            moved = r["rival"]["what"]
            theirs, found = f"{1e3 * r['rival']['min_ms']:,.1f} µs", f"{r['ratio']:,.3g}"
            limit = f"{r['bound']:g}"
        rows.append(f"| `{r['name']}` | {ours} | {moved} | {theirs} | {found} | {limit} |")
    return _with_machines(rows, records)


def _epoch_rows(records: list[dict[str, Any]]) -> str:
    """Seconds an epoch: the least time of a step, times the batches of 50,000 images."""
    rows = [
        "| seconds an epoch of CIFAR-10 | fastprune | plain PyTorch | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for r in records:
        ours, theirs = r["seconds_an_epoch"], r["rival_seconds_an_epoch"]
        rows.append(f"| `{r['name']}` | {ours:,.1f} | {theirs:,.1f} | {r['ratio']:,.3g} |")
    return _with_machines(rows, records)


def _with_machines(rows: list[str], records: list[dict[str, Any]]) -> str:
    made = sorted({machine(r["machine"], r["date"]) for r in records})
    return "\n".join([*rows, "", *made]) + "\n"


def machine(facts: dict[str, Any], date: str) -> str:
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("fastprune", "torch", "torch-pruning", "python")
    )
    if gpu := facts.get("gpu"):
        return f"{gpu['device']}, CUDA {gpu['cuda']}, triton {gpu['triton']}, {versions}; {date}."
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} thread in use, "
        f"{versions}; {date}."
    )


def main() -> None:
    records = [json.loads(p.read_text("utf-8")) for p in sorted(HERE.glob("records/*.json"))]
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + table(records) + "\n" + END + after, "utf-8")


if __name__ == "__main__":
    main()
