"""Pictures of a run of several joined networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastprune.run.ensemble_report import part_of
from fastprune.run.plots import COLORS, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_fused", "draw_times", "plot_devices"]

_MARKS: dict[str, Any] = {"marker": "o", "linewidth": 1.2}


def plot_devices(path: Path, report: Mapping[str, Any]) -> None:
    """Accuracy of the fused networks over the number of devices, and milliseconds an image.

    Args:
        path: of the PNG file.
        report: as `build_ensemble_report` makes it.
    """
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    draw_fused(left, report["fusions"], report["accuracy"]["baseline"]["top1"])
    draw_times(right, report["fusions"])
    for axes in (left, right):
        axes.legend(fontsize=8)
    write_figure(path, figure)


def draw_fused(axes: Axes, fusions: Sequence[Mapping[str, Any]], baseline: float) -> None:
    """Accuracy of the fused networks over the number of devices, beside the baseline's."""
    found = [fusion["test"]["top1"] for fusion in fusions]
    _over_devices(axes, fusions)
    axes.plot(_counts(fusions), found, color=COLORS[0], label="fused", **_MARKS)
    axes.axhline(baseline, color="0.3", linestyle="dashed", label="baseline")
    axes.set_ylabel("test top-1, %")


def draw_times(axes: Axes, fusions: Sequence[Mapping[str, Any]]) -> None:
    """Milliseconds an image over the number of devices, of the parts of split inference."""
    _over_devices(axes, fusions)
    for number, part in enumerate(("unpruned", "slowest expert", "slowest + head", "whole")):
        times = [part_of(fusion["latency"], part)["image_ms"] for fusion in fusions]
        axes.plot(_counts(fusions), times, color=COLORS[number], label=part, **_MARKS)
    batch = part_of(fusions[0]["latency"], "unpruned")["batch"]
    axes.set_ylabel(f"milliseconds an image, {batch} at a time")
    axes.set_ylim(bottom=0)


def _counts(fusions: Sequence[Mapping[str, Any]]) -> list[int]:
    return [fusion["devices"] for fusion in fusions]


def _over_devices(axes: Axes, fusions: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xlabel("devices")
    axes.set_xticks(_counts(fusions))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
