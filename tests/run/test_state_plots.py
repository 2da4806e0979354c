from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fastprune.methods._states import StateRecord
from fastprune.run.state_plots import plot_penalty, plot_state_channels, plot_states

FIRST = StateRecord(
    state=0,
    remaining_weights=200,
    prunable_weights=200,
    channels=24,
    full_channels=24,
    macs=1000,
    params=300,
    widths={"stem": 8, "conv1": 16},
    validation_top1=90.0,
    cut_top1=None,
    penalised_norm=None,
    best_validation_top1=91.0,
    test_top1=None,
    seconds=1.0,
    strengths=((0.0, 0.0), (2.0, 0.2), (4.0, 0.4)),
)
SECOND = replace(
    FIRST,
    state=1,
    remaining_weights=160,
    channels=18,
    widths={"conv1": 4},
    validation_top1=88.0,
    cut_top1=80.0,
    strengths=((0.0, 0.0), (2.0, 0.5)),
)


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


def curves(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): line.get_ydata().tolist() for line in axes.lines}


def test_states_show_what_is_left_and_the_accuracies_that_are_known(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_states(tmp_path / "s.png", [FIRST, SECOND])
    left, accuracy = drawn[0].axes

    assert curves(left) == {"weights": [100, 80], "channels": [100, 75]}
    found = curves(accuracy)
    assert set(found) == {
        "validation, best epoch",
        "validation, last epoch",
        "validation, penalised weights cut",
    }
    assert found["validation, last epoch"] == [90, 88]
    assert found["validation, penalised weights cut"][1] == 80
    assert [t.get_text() for t in left.get_xticklabels()] == ["0\n100 %", "1\n80 %"]


def test_states_without_any_accuracy_and_very_many_are_drawn(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    bare = replace(FIRST, validation_top1=None, best_validation_top1=None)
    states = [replace(bare, state=k, remaining_weights=200 - k) for k in range(60)]
    plot_states(tmp_path / "s.png", states)
    plot_state_channels(tmp_path / "c.png", {"stem": 8, "conv1": 16}, states)

    assert drawn[0].axes[1].lines[:] == []
    assert len(drawn[0].axes[0].get_xticks()) <= 9
    assert len(drawn[1].axes[0].get_xticks()) <= 30


def test_cells_are_the_share_of_each_groups_channels(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_state_channels(tmp_path / "c.png", {"stem": 8, "conv1": 16}, [FIRST, SECOND])
    axes = drawn[0].axes[0]

    # A group that a state does not name is whole.
    assert axes.images[0].get_array().tolist() == [[100, 100], [100, 25]]
    assert [text.get_text() for text in axes.texts] == ["8", "8", "16", "4"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["stem", "conv1"]


def test_more_groups_make_a_higher_picture(tmp_path: Path) -> None:
    full = {f"layer{k}": 4 for k in range(100)}
    plot_state_channels(tmp_path / "c.png", full, [FIRST])

    with Image.open(tmp_path / "c.png") as image:
        assert image.size[1] > 2000


def test_the_penalty_begins_anew_in_every_state(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_penalty(tmp_path / "p.png", [FIRST, SECOND, replace(FIRST, state=2, strengths=())])
    (axes,) = drawn[0].axes

    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 0], [0.5, 0.2], [1, 0.4]],
        [[1, 0], [1.5, 0.5]],
    ]
    assert axes.get_xlabel() == "state; from one to the next, 4 epochs"
    assert axes.get_xlim() == (0, 3)
