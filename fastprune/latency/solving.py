"""A budget in latency: solved with a table of layers, checked on whole networks, solved again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fastprune.errors import BudgetError
from fastprune.files import write_json
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, solve
from fastprune.graph.budget import extremes
from fastprune.latency.cache import tables_of
from fastprune.latency.calls import Call, calls_of
from fastprune.latency.clock import Clock
from fastprune.latency.table import LayerKind, LayerTable
from fastprune.records import Budget, Limit
from fastprune.training.progress import Progress, SilentProgress

__all__ = ["LATENCY", "TOLERANCE", "LatencyFacts", "LatencyModel", "TimedPlan", "plan_within"]

Floats = NDArray[np.float64]

LATENCY = "latency_table.json"
"""What a call measured, in its work folder."""

TOLERANCE = 0.05
"""How far from its limit a measured latency may be. ResNet-56 beside itself, in turns on a busy
machine, differed by up to 2.3 % in ten measurements, so nothing much finer can be held."""


_AGAIN = 2
"""How often a plan is looked for again. A plan takes what the table has too cheap, as a random one
does not: of ResNet-56 beside busy neighbours the first was up to 28 % off, the second up to 13.
"""


@dataclass(frozen=True, slots=True)
class LatencyFacts:
    """What became of a limit on latency, in milliseconds that the unpruned network's are of.

    Attributes:
        limit_ms: what was asked for.
        unpruned_ms: of the unpruned network, measured.
        smallest_ms: with every group at its floor, measured.
        predicted_ms: of the plan, from the table.
        reached_ms: of the plan, measured.
        first_reached_ms: of the first plan, where that missed and another was looked for.
        held: whether ``reached_ms`` is within the limit and its tolerance.
        device, threads, batch_size, mode: what it is of.
    """

    limit_ms: float
    unpruned_ms: float
    smallest_ms: float
    predicted_ms: float
    reached_ms: float
    first_reached_ms: float | None
    held: bool
    device: str
    threads: int
    batch_size: int
    mode: str

    def to_json(self) -> dict[str, Any]:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {**rounded, "tolerance": TOLERANCE}


class TimedPlan(NamedTuple):
    """A plan, and the facts of its latency; None where the budget has no limit on it."""

    plan: PruningPlan
    facts: LatencyFacts | None


class LatencyModel:
    """Milliseconds of networks of any widths, from the tables of their layers.

    The sum over the layers leaves out what Python and calls in no table take, and caches that are
    shared. So networks that were measured whole put it right, in straight lines between them.

    Args:
        calls: of the network.
        tables: of their kinds.
    """

    def __init__(self, calls: Sequence[Call], tables: Mapping[LayerKind, LayerTable]) -> None:
        equal: dict[tuple[LayerKind, bytes, bytes], list[Call]] = {}
        for call in calls:
            inputs, outputs = (
                b"" if form is None else form.tobytes() for form in (call.inputs, call.outputs)
            )
            equal.setdefault((call.kind, inputs, outputs), []).append(call)
        self._terms = [(tables[kind], same[0], len(same)) for (kind, _, _), same in equal.items()]
        self._known: list[tuple[float, float]] = []

    def summed(self, widths: Floats) -> Floats:
        """Milliseconds of the layers alone ``[...]`` at widths ``[..., groups]``."""
        total = np.zeros(widths.shape[:-1])
        for table, call, times in self._terms:
            sides = (
                np.zeros(total.shape) if form is None else form[0] + widths @ form[1:]
                for form in (call.inputs, call.outputs)
            )
            total = total + times * table.predict(*sides)
        return total

    def put_right(self, widths: Floats, milliseconds: float) -> None:
        """Takes a whole network into account that was measured at widths ``[groups]``."""
        self._known.append((float(self.summed(widths)), milliseconds))
        self._known.sort()

    def __call__(self, widths: Floats) -> Floats:
        """Milliseconds ``[...]`` at widths ``[..., groups]``; at least one was `put_right`."""
        summed, measured = (np.array(part) for part in zip(*self._known, strict=True))
        # A narrower network that was measured slower says that nothing is to be had there.
        return np.asarray(np.interp(self.summed(widths), summed, np.maximum.accumulate(measured)))


def plan_within(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    budget: Budget | Mapping[str, float] | None,
    *,
    clock: Clock,
    work: Path | None = None,
    progress: Progress | None = None,
    **solving: Any,
) -> TimedPlan:
    """`fastprune.solve`, with a limit on latency too.

    The limit is one on the lower quartile of many turns. The plan that the table gives is built
    and measured beside the unpruned network; where it is more than 5 % off its limit, another is
    looked for with what was measured, at most twice, and the best of them is given.

    Args:
        model: the network that will be pruned; left as it is.
        graph, scores, budget, solving: as `fastprune.solve` has them.
        clock: what measures.
        work: folder that keeps what was measured, so that a call that goes on decides alike.
        progress: shows the measuring.

    Raises:
        BudgetError: the budget cannot be met; of latency, with the smallest that can be reached.
    """
    limits = Budget.parse(budget).limits if budget is not None else ()
    limit = next((row for row in limits if row.metric == "latency_ms"), None)
    if limit is None:
        return TimedPlan(solve(graph, scores, budget, **solving), None)
    told = progress or SilentProgress()
    measured = _Measured(model, graph, clock, work, told)
    free = {name: value for name, value in solving.items() if name != "ranking"}
    low, half = extremes(graph, scores, **free)
    full_ms, half_ms, low_ms = measured.networks(half, low)
    bound = limit.absolute(full_ms)
    if low_ms > bound:
        raise _unreachable(limit, full_ms, low_ms, clock)
    predict = measured.model()
    for plan, ms in ((graph.full_plan(), full_ms), (half, half_ms), (low, low_ms)):
        predict.put_right(graph.width_vector(plan), ms)
    # In milliseconds, so that a later correction of the model does not move what was asked for.
    asked = Budget(tuple(Limit("latency_ms", bound, False) if r is limit else r for r in limits))
    tries = [_tried(graph, scores, asked, predict, measured, full_ms, solving)]
    while _missed(tries[-1], bound) and len(tries) <= _AGAIN:
        predict.put_right(graph.width_vector(tries[-1].plan), tries[-1].ms)
        tries.append(_tried(graph, scores, asked, predict, measured, full_ms, solving))
    best = min(tries, key=lambda tried: _badness(tried, bound))
    facts = LatencyFacts(
        limit_ms=bound,
        unpruned_ms=full_ms,
        smallest_ms=low_ms,
        predicted_ms=best.predicted,
        reached_ms=best.ms,
        first_reached_ms=None if len(tries) == 1 else tries[0].ms,
        held=best.ms <= bound * (1 + TOLERANCE),
        device=clock.setting.device,
        threads=clock.setting.threads,
        batch_size=clock.setting.batch_size,
        mode=clock.setting.mode,
    )
    again = "" if len(tries) == 1 else f", after {tries[0].ms:.4g} ms of a first plan"
    told.note(
        f"latency: {best.ms:.4g} ms of {full_ms:.4g} measured, {best.predicted:.4g} predicted, "
        f"{bound:.4g} asked for{again}"
    )
    return TimedPlan(best.plan, facts)


def latency_range(
    model: nn.Module,
    graph: ChannelGraph,
    budget: Mapping[str, float],
    *,
    clock: Clock,
    **solving: Any,
) -> str:
    """What latency can be brought to, in words; measured, without a table.

    Args:
        model, graph, clock: as in :func:`plan_within`; weights do not matter.
        budget: with a limit on latency.
        solving: ``round_to``, ``min_channels`` and ``ratios`` as `fastprune.solve` has them.

    Raises:
        BudgetError: the limit is out of reach, or met already, by more than can be a matter of
            measuring.
    """
    scores = {group.name: np.zeros(group.channels) for group in graph.groups}
    low, _ = extremes(graph, scores, **solving)
    full_ms, low_ms = _Measured(model, graph, clock, None, SilentProgress()).networks(low)
    limits = Budget.parse(budget).limits
    for limit in limits:
        if limit.metric != "latency_ms":
            continue
        if low_ms > limit.absolute(full_ms) * (1 + TOLERANCE):
            raise _unreachable(limit, full_ms, low_ms, clock)
        met = limit.absolute(full_ms) > full_ms * (1 + TOLERANCE)
        if met and len(limits) == 1 and not solving.get("ratios"):
            raise BudgetError(
                f"budget.latency_ms: {limit.shown(_digits(full_ms))} is met by the unpruned "
                f"network ({full_ms:.4g} ms); nothing would be pruned"
            )
    return f"latency_ms {low_ms:.4g} to {full_ms:.4g}"


def _unreachable(limit: Limit, full_ms: float, low_ms: float, clock: Clock) -> BudgetError:
    setting = clock.setting
    why = (
        f"measured at batch {setting.batch_size}, threads {setting.threads}, {setting.mode}, with "
        "every group at its floor"
    )
    return BudgetError(limit.beyond(_digits(low_ms), _digits(full_ms), why))


def _digits(ms: float) -> float:
    """Milliseconds to the digits that measuring gives."""
    return float(f"{ms:.4g}")


class _Tried(NamedTuple):
    """A plan with its latency as the table had it and as it was, in the unpruned network's ms."""

    plan: PruningPlan
    predicted: float
    ms: float


def _tried(
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    budget: Budget,
    predict: LatencyModel,
    measured: _Measured,
    full_ms: float,
    solving: Mapping[str, Any],
) -> _Tried:
    plan = solve(graph, scores, budget, latency=predict, **solving)
    now, ms = measured.networks(plan)
    # The machine may be slower by now; the unpruned network beside it says by how much.
    return _Tried(plan, float(predict(graph.width_vector(plan))), ms * full_ms / now)


def _missed(tried: _Tried, bound: float) -> bool:
    """Whether a plan is over its limit, or smaller than it was meant to be: where another limit or
    the steps of the widths made it small, the table says so too.
    """
    low, high = bound * (1 - TOLERANCE), bound * (1 + TOLERANCE)
    return tried.ms > high or tried.ms < low <= tried.predicted


def _badness(tried: _Tried, bound: float) -> tuple[bool, float]:
    """Within the limit first, and then close to it."""
    return tried.ms > bound * (1 + TOLERANCE), abs(tried.ms - bound)


class _Measured:
    """What was measured, each thing once, an interrupted call that this goes on with included."""

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        clock: Clock,
        work: Path | None,
        progress: Progress,
    ) -> None:
        self._network, self._graph, self._clock = model, graph, clock
        self._file = None if work is None else work / LATENCY
        self._progress = progress
        self._networks: dict[str, list[float]] = {}
        self._tables: dict[LayerKind, LayerTable] = {}
        there = self._read(progress)
        if there is not None:
            self._tables, self._networks = there

    def model(self) -> LatencyModel:
        """The latency of any widths, yet to be put right."""
        calls = calls_of(self._graph, self._clock.setting.batch_size)
        if not {call.kind for call in calls} <= set(self._tables):
            self._tables = tables_of(calls, self._clock, self._progress)
            self._write()
        return LatencyModel(calls, self._tables)

    def networks(self, *plans: PruningPlan) -> list[float]:
        """Milliseconds of the unpruned network, and of what each plan leaves."""
        key = " ".join(plan.digest for plan in plans)
        if key not in self._networks:
            small = [
                apply_plan(self._network, self._graph, plan, allow_unchanged=True)
                for plan in plans
            ]
            self._networks[key] = self._clock.networks(
                [self._network, *small], self._graph.example()
            )
            self._write()
        return self._networks[key]

    def _read(
        self, progress: Progress
    ) -> tuple[dict[LayerKind, LayerTable], dict[str, list[float]]] | None:
        if self._file is None or not self._file.is_file():
            return None
        there = json.loads(self._file.read_text(encoding="utf-8"))
        if there["setting"] != self._clock.setting.to_json():
            progress.note(
                f"latency: measured anew, since what is in {self._file.name} is of "
                f"{_told(there['setting'])}, and this is {_told(self._clock.setting.to_json())}"
            )
            return None
        tables = map(LayerTable.from_json, there["tables"])
        return {table.kind: table for table in tables}, there["networks"]

    def _write(self) -> None:
        if self._file is not None:
            content = {
                "setting": self._clock.setting.to_json(),
                "networks": self._networks,
                "tables": [table.to_json() for table in self._tables.values()],
            }
            write_json(self._file, content)


def _told(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items())
