"""Every method on digits, three seeds each.

``python benchmarks/methods/digits.py OUT [NAME=VALUE ...]`` makes the runs METHOD_SEED of
configs/METHOD_quick_digits.yaml in OUT, compares them there (``comparison.png``), and prints mean
and standard deviation as Markdown. Overrides are for every run, such as ``threads=1``. Half an
hour on one quiet core; runs that are there go on or are done.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("slimming", "abc", "metapruning", "lottery", "papm_split")
SEEDS = (0, 1, 2)


def run(method: str, seed: int, out: Path, given: Sequence[str]) -> None:
    config, folder = CONFIGS / f"{method}_quick_digits.yaml", out / f"{method}_{seed}"
    print(folder, file=sys.stderr)
    command = ["fastprune", "run", str(config), f"seed={seed}", *given, "--out", str(folder)]
    subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def over_seeds(rows: Sequence[dict[str, Any]], name: str, scale: float = 1.0) -> str:
    """Mean and standard deviation of a column; nothing where a row has no such figure."""
    found = [scale * row[name] for row in rows if row[name] is not None]
    if len(found) < len(SEEDS):
        return ""
    return f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}"


def main() -> None:
    out, given = Path(sys.argv[1]), sys.argv[2:]
    for seed in SEEDS:
        for method in METHODS:
            run(method, seed, out, given)
    folders = [str(out / f"{method}_{seed}") for method in METHODS for seed in SEEDS]
    subprocess.run(["fastprune", "compare", *folders, "--out", str(out)], check=True)
    compared = json.loads((out / "comparison.json").read_text())["runs"]
    print("| method | before, % | after, % | MACs left, % | parameters left, % | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for method in METHODS:
        rows = [row for row in compared if row["method"] == method]
        cells = [over_seeds(rows, name) for name in ("top1_before", "top1_after")]
        cells += [over_seeds(rows, name, 100) for name in ("macs_share", "params_share")]
        cells.append(f"{statistics.mean(row['seconds'] for row in rows):.0f}")
        print(f"| `{method}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
