"""A network to its ChannelGraph: ties to components, components to channel groups."""

from __future__ import annotations

import fnmatch
import gc
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fastprune.errors import GraphError, nearest
from fastprune.graph.channel_graph import ChannelGraph, ChannelGroup, Facts
from fastprune.graph.channels import FIXED, ChannelTracker, Map
from fastprune.graph.program import Op, Program
from fastprune.graph.rules import RULES
from fastprune.graph.trace import (
    Example,
    Scan,
    scan,
    trace_program,
    used_parameters,
)

__all__ = ["trace"]


def trace(
    model: nn.Module,
    example: Example | Tensor,
    *,
    keep: Sequence[str] = (),
    select: Sequence[str] | Literal["auto"] = (),
) -> ChannelGraph:
    """The channel graph of a network, from one run without arithmetic.

    Args:
        model: any module; it is not changed.
        example: an input, or a tuple of positional arguments; only shapes, dtypes and devices
            matter.
        keep: name patterns (``layer1.*``) of layers whose channels always stay.
        select: name patterns of batch norms that get a selected group: they and their reader drop
            channels of a tensor that others go on reading whole. ``auto``: every batch norm that
            is not the sole reader of a convolution or linear layer (pre-activation networks,
            DenseNets).

    Raises:
        GraphError: the network does not run on the example, or a pattern matches nothing.
    """
    collecting = gc.isenabled()
    # Thousands of small records that all stay: a collection in between costs more than the trace.
    gc.disable()
    try:
        return _trace(model, example, keep, select)
    finally:
        if collecting:
            gc.enable()


def _trace(
    model: nn.Module,
    example: Example,
    keep: Sequence[str],
    select: Sequence[str] | Literal["auto"],
) -> ChannelGraph:
    held = scan(model)
    program = trace_program(model, example, held=held)
    if not program.outputs:
        raise GraphError("the network returned no tensor that depends on its input")
    used = used_parameters(program)
    unused = [
        v.name for v in held.values.values() if v.source == "parameter" and v.name not in used
    ]
    training = _training_program(model, example, held, unused) if unused else None
    if training is not None:
        reached = used_parameters(training)
        unused = [name for name in unused if name not in reached]
    if unused and (looked := _looked_at(program)):
        raise GraphError(
            f"the network's code looks at numbers that it computed ({', '.join(looked)}), and "
            f" {len(unused)} parameters were not reached ({', '.join(unused[:3])}): which "
            "layers run may depend on the images, and pruning along one way would break the "
            "others; trace a part without such choices, or make them tensor operations"
        )
    tracker = ChannelTracker(modules=held.modules)
    _walk(program, tracker, select)
    evaluated = tracker.maps, tracker.layers
    training_maps: list[Map | None] = []
    if training is not None:
        _walk(training, tracker, select)
        training_maps = tracker.maps
        tracker.maps, tracker.layers = evaluated
    tracker.modules = {}  # a graph holds no weights
    for slot in tracker.slots:
        for name in slot.parameters:
            if name in tracker.fixed_parameters:
                tracker.freeze(slot.ids, tracker.fixed_parameters[name])
    return _assemble(program, training, tracker, training_maps, held, unused, keep, example)


def _looked_at(program: Program) -> list[str]:
    """Calls whose result is a single number that no other call reads: Python does, then.

    ``float(x.max()) > 0`` is no torch function that could be seen.
    """
    returned = {value.id for value in program.outputs}
    return [
        f"{op.name}, op {op.index}"
        for op in program.ops
        if any(
            value.uses == 0 and value.id not in returned and math.prod(value.shape) == 1
            for value in op.outputs
        )
    ]


def _training_program(
    model: nn.Module, example: Example, held: Scan, unused: list[str]
) -> Program | None:
    """What the network does in training mode, if that reaches any of the unused parameters.

    Auxiliary heads run in training mode only; pruning must keep them in step.
    """
    try:
        program = trace_program(model, example, training=True, held=held)
    except GraphError:
        return None  # it wants targets then, say; evaluation mode is what was asked for
    return program if not used_parameters(program).isdisjoint(unused) else None


def _walk(
    program: Program, tracker: ChannelTracker, select: Sequence[str] | Literal["auto"]
) -> None:
    """Runs the channel rules over the program."""
    tracker.start(program, _selected(program, select))
    for op in program.ops:
        rule = RULES.get(op.name)
        if rule is None:
            tracker.stop(op, f"{op.name} (op {op.index}) has no rule")
        else:
            rule.channels(tracker, op)
    for value in program.outputs:
        tracker.freeze(tracker.maps[value.id], "network output")
    returned = {value.id for value in program.outputs}
    for op in program.ops:
        unread = [v for v in op.outputs if v.uses == 0 and v.id not in returned]
        if len(unread) < len(op.outputs) and op.name not in (
            "chunk",
            "split",
            "tensor_split",
            "split_with_sizes",
        ):
            continue  # the positions of a maximum, say
        for value in unread:
            # Code that bypasses torch functions (custom autograd, compiled extensions) reads
            # values unseen.
            tracker.freeze(
                tracker.maps[value.id],
                f"what reads the result of {op.name} (op {op.index}) was not seen",
            )


def _selected(program: Program, select: Sequence[str] | Literal["auto"]) -> frozenset[int]:
    if not select:
        return frozenset()
    if isinstance(select, str) and select != "auto":
        select = (select,)
    norms = {}
    for op in program.ops:
        if op.name == "batch_norm":
            names = [v.name for v in op.inputs if v.name]
            if names:
                norms[op.index] = (names[0].rpartition(".")[0], op)
    if select == "auto":
        return frozenset(
            index for index, (_, op) in norms.items() if not _follows_alone(program, op)
        )
    chosen: set[int] = set()
    for pattern in select:
        matched = {
            index for index, (name, _) in norms.items() if fnmatch.fnmatchcase(name, pattern)
        }
        if not matched:
            raise GraphError(
                f"select {pattern!r}: matches no batch "
                f"norm{nearest(pattern, [n for n, _ in norms.values()])}"
            )
        chosen |= matched
    return frozenset(chosen)


def _follows_alone(program: Program, op: Op) -> bool:
    """Whether the norm is the only reader of a convolution's or linear layer's output."""
    source = op.inputs[0]
    if source.producer < 0 or source.uses != 1:
        return False
    return program.ops[source.producer].name.startswith(("conv", "linear"))


def _components(count: int, ties: Iterable[tuple[Map, Map]]) -> tuple[Map, list[Map]]:
    """Smallest id of each channel's component, and the ids that are tied to fixed positions."""
    label = np.arange(count + 1)
    left: list[Map] = []
    right: list[Map] = []
    nailed: list[Map] = []
    for a, b in ties:
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        left.append(a.ravel())
        right.append(b.ravel())
    if not left:
        return label, nailed
    a, b = np.concatenate(left), np.concatenate(right)
    fixed = (a == FIXED) | (b == FIXED)
    if fixed.any():
        nailed.append(np.concatenate([a[fixed], b[fixed]]))
        a, b = a[~fixed], b[~fixed]
    while True:
        x, y = label[a], label[b]
        differ = x != y
        if not differ.any():
            return label, nailed
        a, b, x, y = a[differ], b[differ], x[differ], y[differ]
        low = np.minimum(x, y)
        # Hook each component's root onto the smaller one, then flatten.
        np.minimum.at(label, np.maximum(x, y), low)
        while True:
            flat = label[label]
            if np.array_equal(flat, label):
                break
            label = flat


def _assemble(
    program: Program,
    training: Program | None,
    tracker: ChannelTracker,
    training_maps: list[Map | None],
    held: Scan,
    unused: list[str],
    keep: Sequence[str],
    example: Example,
) -> ChannelGraph:
    """Channels by component, components by signature: the groups."""
    count = tracker.next_id
    label, nailed = _components(count, tracker.ties)
    frozen_rows: list[tuple[Map, str]] = list(tracker.frozen)
    frozen_rows += [(ids, "tied to padding or another position of fixed size") for ids in nailed]
    frozen_rows += _kept_rows(tracker, keep)
    reason_of = np.full(count + 1, -1)
    for number in range(len(frozen_rows) - 1, -1, -1):
        reason_of[label[frozen_rows[number][0].ravel()]] = number
    for terms, reason in tracker.balances:
        reason_of[_out_of_balance(terms, label, reason_of)] = len(frozen_rows)
        frozen_rows.append((label[:0], reason))
    roots = np.flatnonzero(label[:count] == np.arange(count))
    free = roots[reason_of[roots] < 0]
    groups, channel_of, lonely = _groups(
        tracker, free, _signatures(tracker, label, count), _named_by(tracker, label, count), count
    )
    total = sum(g.channels for g in groups)
    numbers = np.full(count + 1, total)
    numbers[:count] = channel_of[label[:count]]
    numbers[numbers < 0] = total
    tensors = {value.name: value for value in held.values.values()}
    facts = Facts(
        tracker, label, numbers, reason_of, frozen_rows, lonely, training_maps, _remember(example)
    )
    return ChannelGraph(program, training, groups, total, tensors, tuple(unused), facts)


def _out_of_balance(terms: list[tuple[float, Map]], label: Map, reason_of: Map) -> Map:
    """Components that can still be dropped and would change the sum of ``factor * channels kept``
    of the terms.
    """
    components = np.concatenate([label[ids] for _, ids in terms])
    factors = np.repeat([factor for factor, _ in terms], [len(ids) for _, ids in terms])
    unique, inverse = np.unique(components, return_inverse=True)
    total = np.bincount(inverse, factors)
    wrong: Map = unique[np.abs(total) > 1e-6]
    open_: Map = wrong[(wrong != len(label) - 1) & (reason_of[wrong] < 0)]
    return open_


def _kept_rows(tracker: ChannelTracker, keep: Sequence[str]) -> list[tuple[Map, str]]:
    rows: list[tuple[Map, str]] = []
    for pattern in (keep,) if isinstance(keep, str) else keep:
        names = set()
        matched = False
        for slot in tracker.slots:
            if slot.role not in ("out", "group", "select"):
                continue
            name = (
                slot.parameters[0]
                if slot.role == "select"
                else slot.parameters[0].rpartition(".")[0]
            )
            names.add(name)
            if fnmatch.fnmatchcase(name, pattern.partition(":")[0]):
                rows.append((slot.ids, f"kept on request ({pattern})"))
                matched = True
        if not matched:
            raise GraphError(
                f"keep {pattern!r}: matches no layer with channels{nearest(pattern, names)}"
            )
    return rows


def _signatures(tracker: ChannelTracker, label: Map, count: int) -> NDArray[np.uint64]:
    """A hash of the slots, with multiplicity, in which each component occurs."""
    signature = np.zeros(count + 1, np.uint64)
    if tracker.slots:
        lengths = [s.ids.size for s in tracker.slots]
        ids = np.concatenate([s.ids.ravel() for s in tracker.slots])
        # splitmix64: one well-mixed number a slot, the same in every process
        z = (np.arange(1, len(lengths) + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        np.add.at(signature, label[ids], np.repeat(z ^ (z >> np.uint64(31)), lengths))
    return signature


def _named_by(tracker: ChannelTracker, label: Map, count: int) -> Map:
    """For each component the channel that gives it a name: the first that a layer makes, not a
    bare parameter.
    """
    if not tracker.adopted:
        return label
    starts = np.array([start for start, _ in tracker.producers])
    ids = np.arange(count)
    layers = ids[
        ~np.isin(starts[np.searchsorted(starts, ids, side="right") - 1], list(tracker.adopted))
    ]
    named_by = np.full(count + 1, count)
    np.minimum.at(named_by, label[layers], layers)
    return np.where(named_by < count, named_by, label)


def _groups(
    tracker: ChannelTracker, free: Map, signature: NDArray[np.uint64], named_by: Map, count: int
) -> tuple[tuple[ChannelGroup, ...], Map, Map]:
    """Groups of equal signature in order of their first channel; channel numbers by root; roots
    left alone.
    """
    channel_of = np.full(count + 1, -1)
    if not len(free):
        return (), channel_of, free
    starts = np.array([start for start, _ in tracker.producers])
    selects = {slot.parameters[0] for slot in tracker.slots if slot.role == "select"}
    _, first, inverse, sizes = np.unique(
        signature[free], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(first), np.int64)
    order = np.argsort(first)
    rank[order] = np.arange(len(order))
    by_group = np.argsort(rank[inverse], kind="stable")
    sorted_roots = free[by_group]
    makers = (np.searchsorted(starts, named_by[free[first[order]]], side="right") - 1).tolist()
    groups: list[ChannelGroup] = []
    lonely: list[Map] = []
    named: dict[str, int] = {}
    at = total = 0
    for size, maker in zip(sizes[order].tolist(), makers, strict=True):
        roots = sorted_roots[at : at + size]
        at += size
        name = tracker.producers[maker][1]
        # Counted for those left alone too: a group that shrinks to one channel must not rename the
        # next one.
        repeat = named.get(name, 0)
        named[name] = repeat + 1
        if size == 1:
            lonely.append(roots)
            continue
        channel_of[roots] = np.arange(total, total + size)
        kind = "selected" if name in selects else "coupled"
        groups.append(ChannelGroup(name if not repeat else f"{name}:{repeat}", size, total, kind))
        total += size
    return tuple(groups), channel_of, np.concatenate(lonely) if lonely else free[:0]


def _remember(example: Example) -> tuple[Any, ...]:
    items = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    return tuple(
        (tuple(i.shape), i.dtype, i.device) if isinstance(i, Tensor) else i for i in items
    )
