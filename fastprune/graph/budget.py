"""Scores and a budget to a plan: bisection over the sorted scores, with the closed-form cost.

No network is built and nothing is counted by running it, so a budget is met in milliseconds.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import BudgetError, PlanError, nearest
from fastprune.graph.channel_graph import ChannelGraph
from fastprune.graph.plan import PruningPlan
from fastprune.records import Budget, Metric

__all__ = ["MIN_CHANNELS", "Latency", "Ranking", "Reach", "extremes", "reachable", "solve"]

Ranking = Literal["global", "layer", "isomorphic"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Without a floor, one global ranking empties whole layers long before the budget is met.
MIN_CHANNELS = 0.1

_COLUMNS: dict[str, int] = {"macs": 0, "params": 1, "channels": 2, "size_mb": 3, "latency_ms": 4}

Latency = Callable[[Floats], Floats]
"""Milliseconds ``[...]`` of networks of widths ``[..., groups]``."""


class Reach(NamedTuple):
    """What a metric can be brought to.

    Attributes:
        metric: which.
        lowest: with every prunable group at its floor.
        full: unpruned.
    """

    metric: Metric
    lowest: float
    full: float


@dataclass(frozen=True, slots=True)
class _Problem:
    """Groups as arrays: what may be dropped, in which order."""

    graph: ChannelGraph
    sizes: Ints
    floors: Ints
    fixed: Ints  # widths of the groups that no ranking decides; -1 elsewhere
    round_to: int


def solve(
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    budget: Budget | Mapping[str, float] | None = None,
    *,
    round_to: int = 1,
    min_channels: int | float = MIN_CHANNELS,
    ranking: Ranking = "global",
    ratios: Mapping[str, float] | None = None,
    keep: Sequence[str] = (),
    latency: Latency | None = None,
) -> PruningPlan:
    """The plan that keeps the best-scored channels within the budget.

    The lowest scores go first until every limit holds; then the best dropped channels that still
    fit come back, so the budget is met from below as closely as the widths allow.

    Args:
        graph: the network's channel graph.
        scores: group name -> scores ``[channels]``, higher stays longer. Groups without scores
            stay whole.
        budget: limits on macs, params, channels, size_mb, latency_ms: up to 1 a fraction kept,
            above it absolute; all hold at once. None: only ``ratios`` are applied.
        round_to: widths are multiples of this, or the whole group.
        min_channels: floor of every group: a number of channels, or below 1 a fraction of the
            group.
        ranking: ``global`` ranks all channels together, ``layer`` drops the same ratio of every
            group, ``isomorphic`` ranks groups of equal structure together and drops the same ratio
            of every such class.
        ratios: group name pattern -> pruning ratio (dropped / all) for groups that the budget
            shall not decide.
        keep: name patterns of groups that stay whole.
        latency: gives the milliseconds of networks of widths ``[..., groups]``; needed for
            ``latency_ms`` alone. `fastprune.latency.plan_within` measures one.

    Raises:
        BudgetError: the budget cannot be met (the message gives the range), or is met already.
        PlanError: scores that rank nothing (all equal, not a number), unknown groups or patterns.
    """
    if ranking not in get_args(Ranking):
        raise PlanError(f"ranking: got {ranking!r}{nearest(str(ranking), get_args(Ranking))}")
    if budget is None and not ratios:
        raise BudgetError("budget: got none; expected a budget such as {'macs': 0.5}, or ratios")
    values = _scores(graph, scores)
    problem = _problem(graph, values, round_to, min_channels, ratios, keep)
    order = [None if score is None else np.argsort(score, kind="stable") for score in values]
    if budget is None:
        widths = np.where(problem.fixed >= 0, problem.fixed, problem.sizes)
        return _plan(graph, order, widths)

    limits = Budget.parse(budget)
    classes = _classes(graph, values, problem.fixed, ranking)
    if latency is None and any(limit.metric == "latency_ms" for limit in limits.limits):
        raise BudgetError(
            "budget.latency_ms: needs a latency that can be predicted; pass latency=, or use "
            "fastprune.prune"
        )

    def costs(widths: Ints) -> Floats:
        """Costs ``[..., 5]`` of widths ``[..., groups]``, the last the latency, or 0."""
        given = widths.astype(np.float64)
        raw = graph.cost_model.raw(given)
        ms = np.zeros(raw.shape[:-1]) if latency is None else latency(given)
        return np.concatenate([raw, ms[..., None]], axis=-1)

    full = costs(problem.sizes)
    lowest = _widths_at(problem, classes, 1.0)
    bounds = _bounds(limits, full, costs(lowest))

    def fits(widths: Ints) -> bool:
        return bool(np.all(costs(widths) <= bounds))

    unpruned = np.where(problem.fixed >= 0, problem.fixed, problem.sizes)
    if fits(unpruned):
        if np.array_equal(unpruned, problem.sizes):
            raise BudgetError(
                f"budget: {_shown(limits)} is met by the unpruned network ({_costs(full)}); "
                "nothing would be pruned"
            )
        return _plan(graph, order, unpruned)
    steps = sum(len(members) for members, _ in classes)
    low, high = 0, steps  # does not fit, fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if fits(_widths_at(problem, classes, middle / steps)) else (middle, high)
        )
    widths = _widths_at(problem, classes, high / steps)
    # Latency goes in steps, on which many channels come back for nothing.
    often = 256 if latency is None else 1024
    widths = _give_back(problem, values, order, widths, bounds, costs, often)
    return _plan(graph, order, widths)


def extremes(
    graph: ChannelGraph,
    scores: Mapping[str, Any],
    *,
    round_to: int = 1,
    min_channels: int | float = MIN_CHANNELS,
    ratios: Mapping[str, float] | None = None,
    keep: Sequence[str] = (),
) -> tuple[PruningPlan, PruningPlan]:
    """The smallest plan that :func:`solve` could give, and one half way to it, for measuring.

    Args:
        graph, scores, round_to, min_channels, ratios, keep: as in :func:`solve`.
    """
    values = _scores(graph, scores)
    problem = _problem(graph, values, round_to, min_channels, ratios, keep)
    order = [None if score is None else np.argsort(score, kind="stable") for score in values]
    low = np.where(problem.fixed >= 0, problem.fixed, problem.floors)
    between = _rounded((problem.sizes + low) // 2, problem.sizes, round_to)
    half = np.where(problem.fixed >= 0, problem.fixed, between)
    return _plan(graph, order, low), _plan(graph, order, half)


def reachable(
    graph: ChannelGraph,
    *,
    round_to: int = 1,
    min_channels: int | float = MIN_CHANNELS,
    ratios: Mapping[str, float] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Reach, ...]:
    """The satisfiability table: how low each metric can go, before any work is done."""
    values: list[Floats | None] = [np.zeros(g.channels) for g in graph.groups]
    problem = _problem(graph, values, round_to, min_channels, ratios, keep)
    widths = np.where(problem.fixed >= 0, problem.fixed, problem.floors)
    low = graph.cost_model.raw(widths.astype(np.float64))
    full = graph.cost_model.raw(problem.sizes.astype(np.float64))
    return tuple(
        Reach(metric, float(low[c]) * scale, float(full[c]) * scale)  # type: ignore[arg-type]
        for metric, c in _COLUMNS.items()
        for scale in (1e-6 if metric == "size_mb" else 1.0,)
        if metric != "latency_ms"
    )


def _scores(graph: ChannelGraph, scores: Mapping[str, Any]) -> list[Floats | None]:
    if not graph.groups:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in graph.unprunable[:3])
        raise PlanError(f"the network has no prunable channels ({reasons})")
    if not isinstance(scores, Mapping):
        raise PlanError(f"scores: expected {{group: scores}}, got {type(scores).__name__}")
    for name in scores:
        graph.group(name)
    if not scores:
        raise PlanError("scores: no group has a score, so nothing can be ranked")
    found: list[Floats | None] = []
    for group in graph.groups:
        given = scores.get(group.name)
        if given is None:
            found.append(None)
            continue
        detached = given.detach().cpu().double().numpy() if hasattr(given, "detach") else given
        try:
            score = np.asarray(detached, np.float64)
        except (TypeError, ValueError):
            raise PlanError(
                f"scores[{group.name!r}]: expected numbers, got {given!r:.80}"
            ) from None
        if score.shape != (group.channels,):
            raise PlanError(
                f"scores[{group.name!r}]: expected shape [{group.channels}], got "
                f"{list(score.shape)}"
            )
        if not np.isfinite(score).all():
            raise PlanError(
                f"scores[{group.name!r}]: {int((~np.isfinite(score)).sum())} scores are not "
                "finite numbers"
            )
        found.append(score)
    return found


def _problem(
    graph: ChannelGraph,
    values: list[Floats | None],
    round_to: int,
    min_channels: int | float,
    ratios: Mapping[str, float] | None,
    keep: Sequence[str],
) -> _Problem:
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise BudgetError(f"round_to: expected a whole number of at least 1, got {round_to!r}")
    if (
        isinstance(min_channels, bool)
        or not isinstance(min_channels, (int, float))
        or not 0 <= min_channels < math.inf
        or (min_channels > 1 and min_channels != int(min_channels))
    ):
        raise BudgetError(
            "min_channels: expected a number of channels or a fraction below 1, got "
            f"{min_channels!r}"
        )
    names = [g.name for g in graph.groups]
    sizes = np.array([g.channels for g in graph.groups], np.int64)
    least = (
        np.ceil(sizes * min_channels)
        if min_channels < 1
        else np.full(len(sizes), float(min_channels))
    )
    floors = _rounded(np.maximum(least.astype(np.int64), 1), sizes, round_to)
    fixed = np.full(len(sizes), -1, np.int64)
    for pattern, ratio in (ratios or {}).items():
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise BudgetError(
                f"ratios[{pattern!r}]: expected a pruning ratio in [0, 1), got {ratio!r}"
            )
        for i in _matching(pattern, names, "ratios"):
            if values[i] is None:
                raise PlanError(
                    f"ratios[{pattern!r}]: group {names[i]!r} has no scores under this criterion"
                )
            dropped = np.int64(sizes[i] * ratio)
            fixed[i] = max(_rounded(sizes[i : i + 1] - dropped, sizes[i : i + 1], round_to)[0], 1)
    for pattern in (keep,) if isinstance(keep, str) else keep:
        for i in _matching(pattern, names, "keep"):
            fixed[i] = sizes[i]
    for i, score in enumerate(values):
        if score is None:
            fixed[i] = sizes[i]
    return _Problem(graph, sizes, floors, fixed, round_to)


def _matching(pattern: str, names: list[str], field: str) -> list[int]:
    found = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise PlanError(f"{field} {pattern!r}: matches no channel group{nearest(pattern, names)}")
    return found


def _rounded(widths: Ints, sizes: Ints, round_to: int) -> Ints:
    """Up to a multiple, at most the whole group."""
    return np.minimum(-(-widths // round_to) * round_to, sizes)


def _classes(
    graph: ChannelGraph, values: list[Floats | None], fixed: Ints, ranking: str
) -> list[tuple[Ints, Floats]]:
    """Per class of groups ranked together: group index of each channel in ascending order of
    score, and the scores.
    """
    members: dict[Any, list[int]] = {}
    for i, group in enumerate(graph.groups):
        if fixed[i] < 0:
            key: Any = (
                0
                if ranking == "global"
                else i
                if ranking == "layer"
                else _structure(graph, group.name)
            )
            members.setdefault(key, []).append(i)
    if not members:
        raise BudgetError(
            "budget: every group is kept or has a ratio of its own, so no channel is left to drop"
        )
    classes = []
    for groups in members.values():
        score = np.concatenate([values[i] for i in groups])
        owner = np.concatenate([np.full(len(values[i]), i) for i in groups])  # type: ignore[arg-type]
        order = np.argsort(score, kind="stable")
        classes.append((owner[order], score[order]))
    if all(score[0] == score[-1] for _, score in classes):
        raise PlanError(
            "scores: all of them are equal, so no channel is better than another; train first, "
            "or use another criterion"
        )
    return classes


def _structure(graph: ChannelGraph, name: str) -> tuple[Any, ...]:
    """What makes two groups alike: roles and kernel shapes of their slots, whatever the widths."""
    rows = []
    for slot in graph.group_slots(name):
        if slot.role not in ("select", "selected scale"):
            shape = tuple(graph.tensors[slot.parameters[0]].shape)
            rows.append((slot.role, slot.dim, shape[2:], len(shape)))
    return tuple(sorted(rows))


def _widths_at(problem: _Problem, classes: list[tuple[Ints, Floats]], ratio: float) -> Ints:
    """Widths when this ratio of every class has been dropped, lowest scores first, within the
    floors.
    """
    dropped = np.zeros(len(problem.sizes), np.int64)
    for owner, _ in classes:
        dropped += np.bincount(
            owner[: math.floor(ratio * len(owner) + 1e-9)], minlength=len(dropped)
        )
    widths = np.maximum(
        _rounded(problem.sizes - dropped, problem.sizes, problem.round_to), problem.floors
    )
    return np.where(problem.fixed >= 0, problem.fixed, widths)


def _bounds(budget: Budget, full: Floats, least: Floats) -> Floats:
    """Upper bounds on the costs ``[5]``, given those of the unpruned and the smallest network.

    Raises:
        BudgetError: one is below what the smallest costs.
    """
    bounds = np.full(5, np.inf)
    for limit in budget.limits:
        column = _COLUMNS[limit.metric]
        scale = 1e6 if limit.metric == "size_mb" else 1.0
        bound = limit.absolute(full[column] / scale) * scale
        if least[column] > bound:
            low, high = least[column] / scale, full[column] / scale
            raise BudgetError(limit.beyond(low, high, "with the floors given"))
        bounds[column] = min(bounds[column], bound)
    return bounds


def _give_back(
    problem: _Problem,
    values: list[Floats | None],
    order: list[Any],
    widths: Ints,
    bounds: Floats,
    costs: Callable[[Ints], Floats],
    often: int,
) -> Ints:
    """Restores the best dropped channels that still fit, one step of one group at a time."""
    open_groups = np.flatnonzero(problem.fixed < 0)
    for _ in range(often):
        if (costs(widths) / bounds).max() > 0.9995:
            break
        wider = _rounded(widths + 1, problem.sizes, problem.round_to)
        growing = open_groups[wider[open_groups] > widths[open_groups]]
        if not len(growing):
            break
        candidates = np.repeat(widths[None], len(growing), 0)
        candidates[np.arange(len(growing)), growing] = wider[growing]
        fit = np.all(costs(candidates) <= bounds, axis=1)
        if not fit.any():
            break
        gains = [_best_dropped(values[i], order[i], int(widths[i])) for i in growing[fit]]
        widths = candidates[fit][int(np.argmax(gains))]
    return widths


def _best_dropped(score: Floats | None, order: Any, width: int) -> float:
    return -math.inf if score is None else float(score[order[len(order) - width - 1]])


def _plan(graph: ChannelGraph, order: list[Any], widths: Ints) -> PruningPlan:
    keep = {}
    for group, ascending, width in zip(graph.groups, order, widths, strict=True):
        if ascending is None or width == group.channels:
            keep[group.name] = tuple(range(group.channels))
        else:
            keep[group.name] = tuple(np.sort(ascending[group.channels - int(width) :]).tolist())
    return PruningPlan(keep, graph.widths())


def _shown(budget: Budget) -> str:
    return ", ".join(f"{limit.metric} {limit.value:g}" for limit in budget.limits)


def _costs(raw: Floats) -> str:
    macs, params, channels, size, _ = raw
    return (
        f"macs {macs:,.0f}, params {params:,.0f}, channels {channels:,.0f}, "
        f"size_mb {size / 1e6:.3f}"
    )
