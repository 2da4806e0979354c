from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fastprune.run.compared_run import ComparedRun, StatePoint
from fastprune.run.comparison_plot import plot_comparison

RUN = ComparedRun(
    name="plain",
    method="one_shot",
    variant=None,
    network="resnet20_cifar",
    dataset="digits",
    seed=0,
    top1_before=93.0,
    top1_after=91.0,
    macs=50,
    macs_share=0.5,
    params=60,
    params_share=0.6,
    channels=70,
    channels_share=0.7,
    remaining_weights=None,
    states=None,
    seconds=1.0,
    path="runs/plain",
    by_state=(),
)
POINTS = tuple(StatePoint(k, 0.8**k, 0.9**k, 0.7**k, 0.6**k, 90.0 - k, 92.0 - k) for k in range(3))
TICKET = replace(RUN, name="imp", by_state=POINTS, states=3, remaining_weights=0.64)


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


def lines(axes: Any, style: str) -> list[list[list[float]]]:
    found = [line for line in axes.lines if line.get_linestyle() == style]
    return [line.get_xydata().round(6).tolist() for line in found if len(line.get_xdata())]


def test_a_point_a_run_and_an_open_one_for_the_unpruned(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_comparison(tmp_path / "c.png", [RUN, replace(RUN, name="other", top1_before=None)])
    macs, params = drawn[0].axes

    assert lines(macs, "None") == [[[50, 91]], [[100, 93]], [[50, 91]]]
    assert lines(params, "None") == [[[60, 91]], [[100, 93]], [[60, 91]]]
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["plain", "other", "unpruned"]
    assert (macs.get_ylabel(), macs.get_xlabel()) == (
        "test top-1, %",
        "MACs, % of the unpruned network's",
    )


def test_a_ticket_has_a_curve_over_its_states_in_one_color(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_comparison(tmp_path / "c.png", [RUN, TICKET])
    macs, params, weights = drawn[0].axes

    assert lines(macs, "-") == [[[100, 90], [70, 89], [49, 88]]]
    assert lines(params, "-") == [[[100, 90], [60, 89], [36, 88]]]
    assert lines(weights, "-") == [[[100, 90], [80, 89], [64, 88]]]
    assert lines(weights, "None") == [[[64, 91]], [[100, 93]]]
    assert weights.get_xscale() == "log"
    colors = {axes.lines[-1].get_color() for axes in (params, weights)} | {
        line.get_color() for line in weights.lines
    }
    assert len(colors) == 1


def test_states_without_test_accuracy_are_dashed_and_told(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    points = tuple(replace(point, test_top1=None) for point in POINTS)
    plot_comparison(tmp_path / "c.png", [replace(TICKET, by_state=points)])

    assert lines(drawn[0].axes[0], "--") == [[[100, 92], [70, 91], [49, 90]]]
    text = drawn[0].legends[0].get_texts()[0].get_text()
    assert text == "imp (dashed: validation)"


def test_no_name_is_a_formula_or_hidden_and_no_two_of_many_look_the_same(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    runs = [replace(RUN, name=f"_$x{k}$", top1_before=None) for k in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_comparison(tmp_path / "c.png", runs)
    (legend,) = drawn[0].legends

    assert len(legend.get_texts()) == 40
    looks = {
        (line.get_color(), line.get_marker())
        for line in drawn[0].axes[0].lines
        if line.get_linestyle() == "None"
    }
    assert len(looks) == 40
