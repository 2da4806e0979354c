"""Budgets in latency, with a clock that goes by a formula."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastprune as fp
from fastprune import criteria, models
from fastprune.errors import BudgetError
from fastprune.graph import ChannelGraph
from fastprune.latency import LATENCY, TOLERANCE, latency_range, plan_within
from fastprune.latency.solving import TimedPlan
from fastprune.testing.latency import FormulaClock
from fastprune.training.progress import SilentProgress

IMAGE = torch.zeros(1, 3, 32, 32)


class Told(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class Broken(FormulaClock):
    """Breaks off at a measurement of networks."""

    def __init__(self, at: int, **options: Any) -> None:
        super().__init__(**options)
        self.at = at

    def networks(self, models: Sequence[nn.Module], example: Sequence[Tensor]) -> list[float]:
        if len(self.measured) == self.at:
            raise KeyboardInterrupt
        return super().networks(models, example)


Given = tuple[nn.Module, ChannelGraph, dict[str, Tensor]]


@pytest.fixture(scope="module")
def given() -> Given:
    torch.manual_seed(0)
    model = models.build("resnet20_cifar", depth=8).eval()
    graph = fp.trace(model, IMAGE)
    return model, graph, criteria.l1(model, graph)


def solved(
    given: Given, clock: FormulaClock, budget: dict[str, float], **options: Any
) -> TimedPlan:
    return plan_within(*given, budget, clock=clock, **options)


def measured(given: Given, clock: FormulaClock, plan: fp.PruningPlan) -> float:
    model, graph, _ = given
    return clock.whole(fp.apply_plan(model, graph, plan), IMAGE)


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_limit_is_met_closely_from_below(given: Given, share: float, step: int) -> None:
    clock = FormulaClock(step=step)
    plan, facts = solved(given, clock, {"latency_ms": share})
    full = clock.whole(given[0], IMAGE)

    assert facts is not None
    assert facts.unpruned_ms == pytest.approx(full)
    assert facts.limit_ms == pytest.approx(share * full)
    assert facts.reached_ms == pytest.approx(measured(given, clock, plan))
    assert facts.reached_ms <= share * full * (1 + TOLERANCE)
    assert step > 1 or facts.reached_ms > 0.95 * share * full
    assert facts.predicted_ms <= facts.limit_ms
    assert facts.held
    assert facts.smallest_ms <= facts.reached_ms < facts.unpruned_ms


def test_milliseconds_and_fractions_are_the_same(given: Given) -> None:
    clock = FormulaClock(overhead=3.0)
    full = clock.whole(given[0], IMAGE)
    by_fraction = solved(given, clock, {"latency_ms": 0.8})
    by_time = solved(given, clock, {"latency_ms": 0.8 * full})

    assert 0.8 * full > 1
    assert by_time.plan == by_fraction.plan


def test_with_other_limits_all_hold(given: Given) -> None:
    _, graph, _ = given
    plan, facts = solved(given, FormulaClock(), {"latency_ms": 0.8, "macs": 0.3})
    alone, _ = solved(given, FormulaClock(), {"macs": 0.3})

    assert facts is not None
    assert facts.held
    assert graph.cost(plan).macs <= 0.3 * graph.cost().macs
    # The other limit alone is enough, so latency changes nothing, and is not looked for again.
    assert facts.first_reached_ms is None
    assert plan == alone
    tight, facts = solved(given, FormulaClock(), {"latency_ms": 0.6, "macs": 0.9})
    assert facts is not None
    assert facts.limit_ms * 0.93 < facts.reached_ms
    assert graph.cost(tight).macs < 0.9 * graph.cost().macs


def test_without_a_limit_on_latency_nothing_is_measured(given: Given) -> None:
    clock = FormulaClock()
    plan, facts = solved(given, clock, {"macs": 0.5})

    assert facts is None
    assert plan == fp.solve(given[1], given[2], {"macs": 0.5})
    assert (clock.layers, clock.measured) == (0, [])


def test_a_plan_that_misses_is_looked_for_again_with_what_was_seen(given: Given) -> None:
    # Layers in a network take far less than alone where they are narrow.
    clock = FormulaClock(bend=4.0, overhead=0.0)
    plan, facts = solved(given, clock, {"latency_ms": 0.25})

    assert facts is not None
    assert facts.first_reached_ms is not None
    assert abs(facts.first_reached_ms / facts.limit_ms - 1) > TOLERANCE
    first, second = (abs(ms - facts.limit_ms) for ms in (facts.first_reached_ms, facts.reached_ms))
    assert second < first / 2
    assert facts.held
    assert facts.reached_ms == pytest.approx(measured(given, clock, plan))
    # The unpruned, the half and the smallest network; then each plan beside the unpruned one.
    assert clock.measured == [3, 2, 2, 2]


class Stubborn(FormulaClock):
    """Every plan takes as long as the unpruned network."""

    def networks(self, models: Sequence[nn.Module], example: Sequence[Tensor]) -> list[float]:
        found = super().networks(models, example)
        return found if len(found) > 2 else [found[0]] * 2


def test_where_no_plan_is_fast_enough_that_is_said(given: Given) -> None:
    clock = Stubborn()
    _, facts = solved(given, clock, {"latency_ms": 0.7})

    assert facts is not None
    assert not facts.held
    assert facts.to_json()["held"] is False
    assert facts.reached_ms == facts.unpruned_ms
    assert clock.measured == [3, 2, 2, 2]


def test_a_machine_that_slows_down_meanwhile_changes_nothing(given: Given) -> None:
    steady = solved(given, FormulaClock(), {"latency_ms": 0.7})
    slower = solved(given, FormulaClock(drift=(1.0, 1.7)), {"latency_ms": 0.7})

    assert slower.plan == steady.plan
    assert slower.facts is not None
    assert steady.facts is not None
    assert slower.facts.reached_ms == pytest.approx(steady.facts.reached_ms)


def test_a_limit_out_of_reach_is_refused_with_the_smallest(given: Given) -> None:
    clock = FormulaClock(overhead=2.0)
    says = (
        r"latency_ms: 0\.3 \(a fraction: [\d.]+ of [\d.]+\) cannot be reached; measured at .*, "
        r"latency_ms can be from 3\.\d+ to [\d.]+ \(0\.\d+ to 1 of the unpruned"
    )
    with pytest.raises(BudgetError, match=says):
        solved(given, clock, {"latency_ms": 0.3})
    assert clock.layers == 0


def test_a_limit_that_is_met_already_is_refused(given: Given) -> None:
    with pytest.raises(BudgetError, match="is met by the unpruned network"):
        solved(given, FormulaClock(), {"latency_ms": 1e6})


def test_round_to_and_floors_hold(given: Given) -> None:
    plan, _ = solved(
        given, FormulaClock(), {"latency_ms": 0.8}, round_to=4, min_channels=8, ranking="layer"
    )

    assert all(width % 4 == 0 and width >= 8 for width in plan.widths().values())


def test_what_can_be_reached_is_said_without_a_table(given: Given) -> None:
    model, graph, _ = given
    clock = FormulaClock()
    told = latency_range(model, graph, {"latency_ms": 0.9}, clock=clock)

    assert told.endswith(f"to {clock.whole(model, IMAGE):.4g}")
    assert clock.layers == 0
    with pytest.raises(BudgetError, match="cannot be reached"):
        latency_range(model, graph, {"latency_ms": 0.01}, clock=clock)
    with pytest.raises(BudgetError, match=r"latency_ms: 1,000 is met by the unpruned network \("):
        latency_range(model, graph, {"latency_ms": 1000}, clock=clock)
    latency_range(model, graph, {"latency_ms": 1000, "macs": 0.5}, clock=clock)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_call_that_goes_on_decides_as_if_it_had_not_stopped(
    given: Given, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shape(**options: Any) -> dict[str, Any]:
        return {"bend": 4.0, "overhead": 0.0, **options}

    budget = {"latency_ms": 0.25}
    whole = solved(given, FormulaClock(**shape()), budget, work=_made(tmp_path / "whole"))
    work = _made(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        solved(given, Broken(at, **shape()), budget, work=work)
    # Neither cache nor layers are asked any more once the table is in the folder.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    clock = FormulaClock(**shape())
    again = solved(given, clock, budget, work=work)

    assert again == whole
    assert clock.layers == 0 if at else clock.layers > 0
    assert len(clock.measured) == 4 - at
    assert (work / LATENCY).read_bytes() == (tmp_path / "whole" / LATENCY).read_bytes()


def test_a_call_that_is_repeated_measures_nothing(given: Given, tmp_path: Path) -> None:
    first = solved(given, FormulaClock(), {"latency_ms": 0.7}, work=tmp_path)
    clock = FormulaClock(drift=(5.0,))

    assert solved(given, clock, {"latency_ms": 0.7}, work=tmp_path) == first
    assert (clock.layers, clock.measured) == (0, [])


def test_what_another_machine_measured_is_measured_anew(given: Given, tmp_path: Path) -> None:
    solved(given, FormulaClock(batch_size=8), {"latency_ms": 0.7}, work=tmp_path)
    told, clock = Told(), FormulaClock()
    solved(given, clock, {"latency_ms": 0.7}, work=tmp_path, progress=told)

    assert clock.measured
    assert any("measured anew" in note and "batch_size 8" in note for note in told.notes)
    there = json.loads((tmp_path / LATENCY).read_text())
    assert there["setting"] == clock.setting.to_json()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
