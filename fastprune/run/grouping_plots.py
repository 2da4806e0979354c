"""Pictures of a grouping: how alike classes are, and in which order they were merged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastprune.methods._grouping import Grouping
from fastprune.run.plots import COLORS, new_figure, text_of, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dendrogram_figure", "plot_dendrogram", "plot_similarity", "similarity_figure"]

_LABELS = 100
"""Of so many classes every name is written; of more, as many as go side by side."""

_NUMBERS = 12
"""Up to so many classes there is room for a number in every field."""


def plot_similarity(path: Path, matrix: npt.NDArray[np.float64], grouping: Grouping) -> None:
    """A heat map of all pairs of classes, in the order of the dendrogram.

    Args:
        path: of the PNG file.
        matrix: ``[K, K]`` similarities, -1 to 1, in the order of the labels.
        grouping: the groups that were made from them.
    """
    write_figure(path, similarity_figure(matrix, grouping))


def similarity_figure(matrix: npt.NDArray[np.float64], grouping: Grouping) -> Figure:
    """What `plot_similarity` draws."""
    order, count = _order(grouping), len(grouping.classes)
    side = _side(count)
    figure = new_figure(side + 1, side)
    # Made for axes of one aspect; the names of classes would be cut off otherwise.
    figure.set_layout_engine("compressed")
    axes = figure.subplots()
    shown = matrix[np.ix_(order, order)]
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label=f"{grouping.similarity} of mean logits")
    places, names = _names(grouping, order)
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    if count <= _NUMBERS:
        for (row, column), value in np.ndenumerate(shown):
            color = "white" if abs(value) > 0.6 else "black"
            # Not -0.00.
            text = f"{round(value, 2) + 0.0:.2f}"
            axes.text(column, row, text, color=color, ha="center", va="center", fontsize=7)
    return figure


def plot_dendrogram(path: Path, grouping: Grouping) -> None:
    """The merges of classes, from the left on, over their distance.

    Args:
        path: of the PNG file.
        grouping: the groups.
    """
    write_figure(path, dendrogram_figure(grouping))


def dendrogram_figure(grouping: Grouping) -> Figure:
    """What `plot_dendrogram` draws."""
    order, count = _order(grouping), len(grouping.classes)
    height = {number: float(place) for place, number in enumerate(order)}
    reach = dict.fromkeys(range(count), 0.0)
    figure = new_figure(7.5, _side(count))
    axes = figure.subplots()
    width = 1.2 if count <= _LABELS else 0.3
    for number, (one, other, distance, _) in enumerate(grouping.linkage):
        ends = [reach[one], distance, distance, reach[other]]
        between = [height[one], height[one], height[other], height[other]]
        axes.plot(ends, between, color=COLORS[0], linewidth=width)
        height[count + number] = (height[one] + height[other]) / 2
        reach[count + number] = distance
    places, names = _names(grouping, order)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"distance of the classes merged: 1 - {grouping.similarity}, average linkage")
    return figure


def _order(grouping: Grouping) -> list[int]:
    """The classes so that those of every cluster lie side by side."""
    count = len(grouping.classes)
    members = {number: [number] for number in range(count)}
    for number, (one, other, _, _) in enumerate(grouping.linkage):
        # That with the smallest class first, as groups are listed.
        pair = sorted((members.pop(one), members.pop(other)), key=min)
        members[count + number] = pair[0] + pair[1]
    return members.popitem()[1]


def _names(grouping: Grouping, order: list[int]) -> tuple[list[int], list[str]]:
    places = list(range(0, len(order), -(-len(order) // _LABELS)))
    return places, [text_of(grouping.classes[order[place]]) for place in places]


def _side(count: int) -> float:
    """Inches for so many classes."""
    return min(18.0, max(4.0, 0.35 * count + 1.5))
