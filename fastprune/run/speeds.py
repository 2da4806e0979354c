"""What ``fastprune doctor --data`` says: which input pipeline is best for a configuration here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastprune.config import RunConfig
from fastprune.data import measure_pipelines
from fastprune.run.networks import device_of, set_threads
from fastprune.training import choose_progress

__all__ = ["speed_lines", "speed_report"]


def speed_report(config: RunConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Measures every pipeline on a configuration's dataset; plain data.

    Raises:
        FastpruneError: the dataset is not there, or the device is not.
    """
    device = device_of(config.device)
    set_threads(config.threads)
    progress = choose_progress(quiet=quiet)
    parts = measure_pipelines(config.data, config.seed, device=device, teller=progress)
    return {
        "dataset": config.data.name,
        "device": str(device),
        "parts": {
            part.part: {
                "speeds": [asdict(speed) for speed in part.speeds],
                "best": part.best,
                "auto": part.chosen.kind,
                "reason": part.chosen.reason,
            }
            for part in parts
        },
    }


def speed_lines(report: Mapping[str, Any]) -> list[str]:
    """A report in words."""
    lines = [f"input pipelines for {report['dataset']}, images wanted on {report['device']}"]
    for part, found in report["parts"].items():
        for speed in found["speeds"]:
            if speed["problem"] is not None:
                said = f"cannot feed them: {speed['problem']}"
            else:
                said = (
                    f"{speed['images_per_second']:,.0f} images/s, first batch after "
                    f"{speed['first_batch']:.2f} s"
                )
            lines.append(f"  {part:<5} {speed['kind']:<12} {said}")
        lines.append(f"  {part:<5} best: {found['best']}{_margin(found)}")
        lines.append(f"  {part:<5} data.pipeline=auto takes {found['auto']}: {found['reason']}")
    return lines


def _margin(found: Mapping[str, Any]) -> str:
    """How many times the next one's speed the best one has."""
    rates = sorted((s["images_per_second"] or 0.0 for s in found["speeds"]), reverse=True)
    if len(rates) < 2 or not rates[1]:
        return ", the only one that feeds them here"
    return f", {rates[0] / rates[1]:.1f} times the next"
