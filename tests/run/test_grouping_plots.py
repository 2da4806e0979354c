from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastprune.methods._grouping import Grouping, group_classes, similarity
from fastprune.run import grouping_plots
from fastprune.run.grouping_plots import plot_dendrogram, plot_similarity


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, instead of their files."""
    drawn: list[Any] = []
    monkeypatch.setattr(grouping_plots, "write_figure", lambda path, figure: drawn.append(figure))
    return drawn


def classes_of(count: int) -> tuple[np.ndarray, Grouping]:
    alike = similarity(np.random.default_rng(count).normal(size=(count, 20)), "covariance")
    return alike, group_classes(alike, [f"$class_{k}" for k in range(count)], "covariance")


def test_the_heat_map_shows_clusters_side_by_side(figures: list[Any]) -> None:
    logits = np.array([[9.0, 0, 4], [0, 8, 0], [9, 0, 5], [0, 7, 1]])
    alike = similarity(logits)
    plot_similarity(Path("x.png"), alike, group_classes(alike, ("a", "b", "c", "_d"), "cosine"))

    axes = figures[0].axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text().strip() for label in labels] == ["a", "c", "b", "_d"]
    order = [0, 2, 1, 3]
    assert np.array_equal(axes.images[0].get_array(), alike[np.ix_(order, order)])
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers[1, 0] == f"{alike[0, 2]:.2f}"
    assert len(numbers) == 16


def test_the_dendrogram_joins_what_was_merged_at_its_distance(figures: list[Any]) -> None:
    _, grouping = classes_of(9)
    plot_dendrogram(Path("x.png"), grouping)

    lines = figures[0].axes[0].lines
    assert [line.get_xdata()[1] for line in lines] == [row[2] for row in grouping.linkage]
    # No branch crosses another: each level holds as many as there are clusters.
    places = [place for line in lines for place in (line.get_ydata()[0], line.get_ydata()[-1])]
    leaves = sorted(place for place in places if place == int(place))
    assert set(range(9)) <= set(leaves)
    for line, (one, other, _, _) in zip(lines, grouping.linkage, strict=True):
        below = [line.get_xdata()[0], line.get_xdata()[-1]]
        reach = [0.0 if k < 9 else grouping.linkage[k - 9][2] for k in (one, other)]
        assert below == reach


@pytest.mark.parametrize("count", [2, 13])
def test_pictures_are_files_always_the_same(count: int, tmp_path: Path) -> None:
    alike, grouping = classes_of(count)
    for name, draw in (
        ("a.png", lambda file: plot_similarity(file, alike, grouping)),
        ("b.png", lambda file: plot_dendrogram(file, grouping)),
    ):
        draw(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        draw(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def test_of_many_classes_those_names_are_written_that_there_is_room_for(
    figures: list[Any],
) -> None:
    alike, grouping = classes_of(150)
    plot_similarity(Path("x.png"), alike, grouping)
    plot_dendrogram(Path("x.png"), grouping)

    assert [len(figure.axes[0].get_yticklabels()) for figure in figures] == [75, 75]
    assert not figures[0].axes[0].texts
    assert all(max(figure.get_size_inches()) <= 20 for figure in figures)
