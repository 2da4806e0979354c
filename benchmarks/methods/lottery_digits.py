"""IMP, refill and RSST against each other, and RSST's schedules, on digits.

``python benchmarks/methods/lottery_digits.py OUT [NAME=VALUE ...]`` makes ten runs of
configs/lottery_quick_digits.yaml in OUT, compares the first three there (``comparison.png``), and
prints both tables as Markdown. Overrides are for every run, such as ``threads=1``. A quarter of an
hour on one core; runs that are there go on or are done.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[2] / "configs/lottery_quick_digits.yaml"

DEEP = ["method.pruning_times=6", "method.rate=0.3"]
PLAIN = ["method.reg_granularity_prune=1", "method.reg_limit=1"]
VARIANTS = {
    "imp": [*DEEP, *PLAIN, "method.variant=imp"],
    "refill": [*DEEP, *PLAIN, "method.variant=refill"],
    "rsst": DEEP,
}

# Two rounds that each drop half. All schedules end near r = 10: 240 steps a state.
HARSH = ["method.pruning_times=2", "method.rate=0.5"]
SCHEDULES = {
    "x": 0.042,
    "x^2": 0.0132,
    "x^3": 0.009,
    "exp": 0.01,
    "exp_custom": 10,
    "exp_custom_exponents": 10,
}
AT_ONCE = "none: cut at once"


def run(folder: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """The states of a run."""
    command = ["fastprune", "run", str(CONFIG), *overrides, "--out", str(folder), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / "states.jsonl").read_text().splitlines()]


def variants(out: Path, given: list[str]) -> None:
    print(
        "| remaining weights | " + " | ".join(VARIANTS) + " |\n| --- |" + " ---: |" * len(VARIANTS)
    )
    rows: list[list[str]] = []
    for name, overrides in VARIANTS.items():
        states = run(out / name, [*overrides, *given])
        rows.append(
            [
                f"{s['test_top1']:.2f} % ({s['remaining_weights'] / s['prunable_weights']:.1%}, "
                f"{s['macs'] / states[0]['macs']:.1%} of the MACs)"
                for s in states
            ]
        )
    for number, cells in enumerate(zip(*rows, strict=True)):
        print(f"| state {number} | " + " | ".join(cells) + " |")
    folders = [str(out / name) for name in VARIANTS]
    subprocess.run(["fastprune", "compare", *folders, "--out", str(out)], check=True)


def schedules(out: Path, given: list[str]) -> None:
    print("| schedule | ‖U‖ | of plain | validation, % | cut | test at the end |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    plain = 0.0
    for name, granularity in {AT_ONCE: 0, **SCHEDULES}.items():
        schedule = "x" if name == AT_ONCE else name
        overrides = [
            *HARSH,
            f"method.schedule={schedule}",
            f"method.reg_granularity_prune={granularity}",
        ]
        states = run(out / f"rsst_{schedule.replace('^', '')}_{granularity}", [*overrides, *given])
        first = states[1]
        # Of the first round: later ones begin with other weights.
        plain = plain or first["penalised_norm"]
        print(
            f"| {name} | {first['penalised_norm']:.3g} | {first['penalised_norm'] / plain:.2%} "
            f"| {first['validation_top1']:.2f} | {first['cut_top1']:.2f} "
            f"| {states[-1]['test_top1']:.2f} |"
        )


def main() -> None:
    out, given = Path(sys.argv[1]), sys.argv[2:]
    variants(out, given)
    schedules(out, given)


if __name__ == "__main__":
    main()
