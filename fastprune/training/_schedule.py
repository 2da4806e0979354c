"""The order in which the steps of many networks are run, and what is held meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastprune.training._union import Union

__all__ = ["Schedule", "Step", "schedules_of"]


@dataclass(frozen=True, slots=True)
class Step:
    """A step at its turn.

    Attributes:
        node: which.
        done: candidates whose logits are there after it.
        drop: nodes whose results nothing needs any more after that.
    """

    node: int
    done: tuple[int, ...]
    drop: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Candidates that are run together.

    Attributes:
        candidates: which.
        steps: in order.
        peak: bytes of results held at most, for one image.
    """

    candidates: tuple[int, ...]
    steps: tuple[Step, ...]
    peak: int


def schedules_of(union: Union, candidates: Sequence[int], limit: int) -> list[Schedule]:
    """Candidates in groups, each of which holds ``limit`` bytes at most for one image.

    Neighbours in the order of their steps have most in common: a candidate's own steps follow
    those that it shares with the one before, so a result is dropped as soon as the last one that
    reads it was run. Groups share nothing with each other: what they have in common is run in
    each. A single candidate may hold more.
    """
    order = sorted(candidates, key=lambda candidate: union.paths[candidate])
    return _split(union, order, limit)


def _split(union: Union, order: Sequence[int], limit: int) -> list[Schedule]:
    whole = _schedule(union, order)
    if whole.peak <= limit or len(order) < 2:
        return [whole] if order else []
    half = len(order) // 2
    return _split(union, order[:half], limit) + _split(union, order[half:], limit)


def _schedule(union: Union, order: Sequence[int]) -> Schedule:
    nodes: list[int] = []
    turn: dict[int, int] = {}
    for candidate in order:
        for node in union.paths[candidate]:
            if node not in turn:
                turn[node] = len(nodes)
                nodes.append(node)
    last = dict(turn)
    for node in nodes:
        for ref in union.nodes[node].inputs:
            if ref.node >= 0:
                last[ref.node] = max(last[ref.node], turn[node])
    done: dict[int, list[int]] = {}
    for candidate in order:
        done.setdefault(turn[union.outputs[candidate].node], []).append(candidate)
    drop: dict[int, list[int]] = {}
    for node, at in last.items():
        drop.setdefault(at, []).append(node)
    steps, held, peak = [], 0, 0
    for at, node in enumerate(nodes):
        held += union.nodes[node].bytes
        peak = max(peak, held)
        gone = drop.get(at, ())
        held -= sum(union.nodes[other].bytes for other in gone)
        steps.append(Step(node, tuple(done.get(at, ())), tuple(gone)))
    return Schedule(tuple(order), tuple(steps), peak)
