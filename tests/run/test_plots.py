"""Pictures of a run: what is drawn in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fastprune.run.plots import plot_channels, plot_search, plot_training
from fastprune.run.trainings import Epoch


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that was written, as it was then."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saving(self: Figure, *given: Any, **more: Any) -> None:
        figures.append(self)
        save(self, *given, **more)

    monkeypatch.setattr(Figure, "savefig", saving)
    return figures


def row(number: int, phase: str, fitness: float, macs: int) -> str:
    return json.dumps(
        {"number": number, "phase": phase, "fitness": fitness, "cost": {"macs": macs}}
    )


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def test_channels_has_a_bar_of_each_kind_a_group(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_channels(tmp_path / "c.png", {"a": 16, "b": 32, "c": 64}, {"b": 8, "a": 16})
    (axes,) = drawn[0].axes
    original, kept = axes.containers

    assert [bar.get_height() for bar in original] == [16, 32, 64]
    # A group that a plan does not name is whole.
    assert [bar.get_height() for bar in kept] == [16, 8, 64]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert size_of(tmp_path / "c.png")[0] > 500


def test_a_network_of_many_groups_gets_a_wider_picture(tmp_path: Path) -> None:
    names = {f"layer{i}.conv1": 16 for i in range(160)}
    plot_channels(tmp_path / "c.png", names, names)

    assert size_of(tmp_path / "c.png")[0] > 3000


def test_search_has_a_point_a_candidate_and_the_best_so_far(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    # In the order they came to be known, which is not that of their numbers.
    rows = [
        row(1, "initial", 40.0, 2_000_000),
        row(0, "initial", 30.0, 1_000_000),
        row(2, "employed", 35.0, 3_000_000),
        row(3, "of a plug-in", 60.0, 4_000_000),
    ]
    (tmp_path / "trials.jsonl").write_text("\n".join(rows) + "\n")
    plot_search(tmp_path / "s.png", tmp_path / "trials.jsonl")
    over, against = drawn[0].axes

    points = [p.get_offsets().tolist() for p in over.collections]
    assert points == [[[0, 30], [1, 40]], [[2, 35]], [[3, 60]]]
    (line,) = over.lines
    assert line.get_xydata().tolist() == [[0, 30], [1, 40], [2, 40], [3, 60]]
    points = [p.get_offsets().tolist() for p in against.collections]
    assert points == [[[1, 30], [2, 40]], [[3, 35]], [[4, 60]]]
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["initial", "employed", "of a plug-in", "best so far", "front"]
    assert size_of(tmp_path / "s.png")[0] > 1000


def test_a_line_that_a_search_is_writing_is_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    text = row(0, "random", 40.0, 1_000_000) + "\n" + row(1, "random", 50.0, 2_000_000)[:30]
    (tmp_path / "trials.jsonl").write_text(text)
    plot_search(tmp_path / "s.png", tmp_path / "trials.jsonl")

    assert [p.get_offsets().tolist() for p in drawn[0].axes[0].collections] == [[[0, 40]]]


def test_trainings_follow_each_other_and_each_begins_a_line(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    first = [Epoch(1, 2.0, 50.0, 2.5, 45.0, 0.1), Epoch(2, 1.5, 60.0, 2.2, 55.0, 0.05)]
    second = [Epoch(1, 1.0, 70.0, None, None, 0.01)]
    plot_training(tmp_path / "t.png", {"baseline": first, "_tune": second})
    loss, accuracy, rate = drawn[0].axes

    def points(axes: Any) -> list[Any]:
        return [line.get_xydata().tolist() for line in axes.lines]

    assert points(loss) == [[[1, 2], [2, 1.5]], [[1, 2.5], [2, 2.2]], [[3, 1]]]
    assert points(accuracy) == [[[1, 50], [2, 60]], [[1, 45], [2, 55]], [[3, 70]]]
    assert points(rate) == [[[1, 0.1], [2, 0.05]], [[3, 0.01]]]
    assert [line.get_linestyle() for line in loss.lines] == ["-", "--", "-"]
    (over,) = loss.child_axes
    assert [text.get_text() for text in over.get_xticklabels()] == ["baseline", " _tune"]
    assert list(over.get_xticks()) == [1.5, 3]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "training",
        "validation",
    ]


def test_a_single_candidate_can_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text(row(0, "random", 0.0, 1) + "\n")
    plot_search(tmp_path / "s.png", tmp_path / "trials.jsonl")

    assert size_of(tmp_path / "s.png")


def test_pictures_replace_what_was_there_and_leave_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"old")
    plot_channels(tmp_path / "c.png", {"a": 1}, {"a": 1})

    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]
    assert size_of(tmp_path / "c.png")
