"""Puts benchmarks/records/ into docs/benchmarks.md as a table: ``python benchmarks/table.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- records -->\n", "<!-- end of records -->\n"


def table(records: list[dict[str, Any]]) -> str:
    rows = [
        "| benchmark | fastprune, ms | rival | rival, ms | ratio | bound |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for r in records:
        ours, rival = r["ours"], r["rival"]
        rows.append(
            f"| `{r['name']}` | {ours['min_ms']:,.2f} (n={ours['n']}) | {rival['what']} "
            f"| {rival['min_ms']:,.1f} (n={rival['n']}) | {r['ratio']:,.3g} | {r['bound']:g} |"
        )
    made = sorted({machine(r["machine"], r["date"]) for r in records})
    return "\n".join([*rows, "", *made]) + "\n"


def machine(facts: dict[str, Any], date: str) -> str:
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("fastprune", "torch", "torch-pruning", "python")
    )
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
