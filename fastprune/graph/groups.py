"""Program to ChannelGraph: channel groups, the slots that hold their channels, and what cannot be
pruned and why.
"""

from __future__ import annotations

import fnmatch
import gc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fastprune.errors import GraphError, PlanError, nearest
from fastprune.graph.channels import FIXED, ChannelTracker, Layer, LayerCall, Map
from fastprune.graph.cost import CostModel, Costs, Term, build_cost_model
from fastprune.graph.plan import PruningPlan
from fastprune.graph.program import Op, Program, Value
from fastprune.graph.rules import RULES
from fastprune.graph.trace import (
    Example,
    Scan,
    example_inputs,
    scan,
    trace_program,
    used_parameters,
)
from fastprune.records import Cost, Widths

__all__ = ["ChannelGraph", "ChannelGroup", "GroupSlot", "Slot", "Unprunable", "trace"]

Role = Literal[
    "out", "in", "bias", "scale", "norm", "shift", "divisor", "group", "index", "select"
]


class Slot(NamedTuple):
    """A dimension of one or more parameters that holds channels.

    Attributes:
        parameters: names in the network (for role ``select``: the norm layer that reads a
            selection).
        dim: which dimension.
        role: ``out`` and ``in`` side of a weight, ``group`` side of a grouped convolution's
            weight, ``bias``, ``scale`` (the γ of a norm layer), ``norm`` (its other vectors),
            ``shift`` (a bare parameter), ``divisor`` (a bare one that is divided by), ``index``
            and ``select`` (selections).
        channels: int64 ``[size of the dimension]``, the channel's number in the whole graph
            (``group.start + index in the group``), or ``graph.total`` where nothing can be
            dropped.
    """

    parameters: tuple[str, ...]
    dim: int
    role: str
    channels: Map


class GroupSlot(NamedTuple):
    """One group's share of a slot: ``positions[i]`` of the dimension holds channel ``channels[i]``
    of the group.
    """

    parameters: tuple[str, ...]
    dim: int
    role: str
    positions: Map
    channels: Map


class ChannelGroup(NamedTuple):
    """Channels that are exchangeable: each lives in the same slots, so dropping any of them costs
    the same.

    Attributes:
        name: the layer that makes them (``layer1.0.conv1``); ``name:1``, ``name:2`` where one
            layer's channels fall into several groups.
        channels: how many.
        start: number of the first one in the graph.
        kind: ``coupled``, or ``selected`` where only one reader of a tensor drops them.
    """

    name: str
    channels: int
    start: int
    kind: str


class Unprunable(NamedTuple):
    """Channels that always stay, and the reason."""

    name: str
    channels: int
    reason: str


class _Facts(NamedTuple):
    """What the rules noted down, kept so that everything derived from it can wait until it is
    asked for.
    """

    tracker: ChannelTracker
    label: Map
    number: Map
    reason_of: Map
    frozen_rows: list[tuple[Map, str]]
    lonely: Map
    training_maps: list[Map | None]
    example: tuple[Any, ...]


@dataclass(frozen=True)
class ChannelGraph:
    """What can be pruned in a network, what it costs, and where the channels are. Holds no
    weights.

    Attributes:
        program: the network's ops for one example, in evaluation mode.
        training_program: those of training mode, where they reach other parameters (auxiliary
            heads); else None.
        groups: the channel groups, in the order of the layers that make them.
        total: number of channels over all groups.
        tensors: the Value (shape, dtype, source) of every parameter and buffer, by name.
        unused: parameters that the traced run did not touch.
    """

    program: Program
    training_program: Program | None
    groups: tuple[ChannelGroup, ...]
    total: int
    tensors: Mapping[str, Value]
    unused: tuple[str, ...]
    _facts: _Facts

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every parameter dimension that holds channels."""
        number = self._facts.number
        return tuple(
            Slot(s.parameters, s.dim, s.role, number[s.ids.ravel()])
            for s in self._facts.tracker.slots
        )

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Convolution and linear calls of evaluation mode, their channels numbered as in
        ``Slot.channels``.
        """
        number = self._facts.number
        return tuple(_layer(call, number) for call in self._facts.tracker.layers)

    @cached_property
    def maps(self) -> tuple[Map | None, ...]:
        """Channel map of every value, numbered likewise; None for values without channels."""
        number = self._facts.number
        return tuple(None if m is None else number[m] for m in self._facts.tracker.maps)

    @cached_property
    def training_maps(self) -> tuple[Map | None, ...]:
        """The maps of ``training_program``'s values; empty where there is none."""
        number = self._facts.number
        return tuple(None if m is None else number[m] for m in self._facts.training_maps)

    @cached_property
    def by_name(self) -> dict[str, ChannelGroup]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def unprunable(self) -> tuple[Unprunable, ...]:
        """Channels that always stay, by layer, each with the reason."""
        return _unprunable(self._facts)

    @cached_property
    def cost_model(self) -> CostModel:
        """The closed form behind :meth:`cost`."""
        return _cost_model(self)

    def widths(self) -> Widths:
        """Channels of every group in the unpruned network."""
        return {group.name: group.channels for group in self.groups}

    def group(self, name: str) -> ChannelGroup:
        """The group called ``name``.

        Raises:
            PlanError: there is none; the message names the nearest.
        """
        found = self.by_name.get(name)
        if found is None:
            raise PlanError(
                f"group {name!r}: not a group of this network{nearest(name, self.by_name)}"
            )
        return found

    def group_slots(self, group: ChannelGroup | str) -> tuple[GroupSlot, ...]:
        """Where a group's channels are: every parameter dimension, position by position."""
        if isinstance(group, str):
            group = self.group(group)
        found = []
        for slot in self.slots:
            local = slot.channels - group.start
            positions = np.flatnonzero((local >= 0) & (local < group.channels))
            if len(positions):
                found.append(
                    GroupSlot(slot.parameters, slot.dim, slot.role, positions, local[positions])
                )
        return tuple(found)

    def check(self, plan: PruningPlan) -> None:
        """Raises PlanError if ``plan`` is of another network."""
        if not isinstance(plan, PruningPlan):
            raise PlanError(f"plan: expected a PruningPlan, got {type(plan).__name__}")
        for name, kept in plan.keep.items():
            group = self.group(name)
            expected = plan.channels.get(name, group.channels)
            if expected != group.channels:
                raise PlanError(
                    f"plan.channels[{name!r}]: the plan is of a network with {expected} channels "
                    "there, "
                    f"this one has {group.channels}"
                )
            if kept[-1] >= group.channels:
                raise PlanError(
                    f"plan.keep[{name!r}]: channel {kept[-1]} does not exist; the group has "
                    f"{group.channels}"
                )

    def kept(self, plan: PruningPlan) -> NDArray[np.bool_]:
        """Bool ``[total + 1]``: whether each channel stays; the last entry, for fixed positions,
        is True.
        """
        self.check(plan)
        stays = np.ones(self.total + 1, bool)
        for name, kept in plan.keep.items():
            group = self.by_name[name]
            if len(kept) < group.channels:
                stays[group.start : group.start + group.channels] = False
                stays[group.start + np.asarray(kept)] = True
        return stays

    def full_plan(self) -> PruningPlan:
        """The plan that keeps everything."""
        return PruningPlan({g.name: tuple(range(g.channels)) for g in self.groups}, self.widths())

    def plan_from_kept(self, stays: NDArray[np.bool_]) -> PruningPlan:
        """The plan of a bool ``[total]`` or ``[total + 1]``: whether each channel stays."""
        keep = {
            g.name: tuple(np.flatnonzero(stays[g.start : g.start + g.channels]).tolist())
            for g in self.groups
        }
        return PruningPlan(keep, self.widths())

    def width_vector(
        self, plan: PruningPlan | Mapping[str, int] | None = None
    ) -> NDArray[np.float64]:
        """Widths ``[groups]`` of a plan, of a mapping (groups not named stay whole), or of the
        whole network.
        """
        if plan is None:
            return np.array([g.channels for g in self.groups], np.float64)
        if isinstance(plan, PruningPlan):
            self.check(plan)
            plan = plan.widths()
        else:
            for name, width in plan.items():
                group = self.group(name)
                if (
                    not isinstance(width, int)
                    or isinstance(width, bool)
                    or not 1 <= width <= group.channels
                ):
                    raise PlanError(
                        f"widths[{name!r}]: got {width!r}; expected a whole number from 1 to "
                        f"{group.channels}"
                    )
        return np.array([plan.get(g.name, g.channels) for g in self.groups], np.float64)

    def cost(self, plan: PruningPlan | Mapping[str, int] | None = None) -> Cost:
        """MACs, params, channels, size of the network, or of the network that ``plan`` (or widths)
        would leave.
        """
        return self.cost_model.one(self.width_vector(plan))

    def count(self, plan: PruningPlan | None = None, counting: str = "macs") -> Cost:
        """As :meth:`cost`, MACs counted by a published rule: ``macs``, ``thop`` or ``ptflops``."""
        from fastprune.graph.counting import count

        return count(self, plan, counting)

    def costs(self, widths: NDArray[np.int64]) -> Costs:
        """Costs of many candidates at once.

        Args:
            widths: ``[K, groups]`` in the order of ``graph.groups``, each from 1 to the group's
                channels.
        """
        widths = np.asarray(widths)
        if (
            widths.ndim != 2
            or widths.shape[1] != len(self.groups)
            or widths.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"widths: expected integers [K, {len(self.groups)}], got {widths.dtype} "
                f"{list(widths.shape)}"
            )
        if len(widths) and ((widths < 1) | (widths > [g.channels for g in self.groups])).any():
            raise ValueError("widths: expected each from 1 to the channels of its group")
        return self.cost_model.many(widths)

    def example(self) -> tuple[Any, ...]:
        """Inputs of the traced shapes: zeros that take no memory."""
        return example_inputs(self._facts.example)

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} channel groups, {self.total} prunable channels"]
        lines += [
            f"  {g.name}: {g.channels} channels" + (f" ({g.kind})" if g.kind != "coupled" else "")
            for g in self.groups
        ]
        if self.unprunable:
            lines.append("unprunable:")
            lines += [f"  {u.name}: {u.channels} channels: {u.reason}" for u in self.unprunable]
        if self.program.ruleless:
            lines.append("ops without a rule: " + ", ".join(self.program.ruleless))
        if self.unused:
            shown = ", ".join(self.unused[:6]) + (", …" if len(self.unused) > 6 else "")
            lines.append(f"{len(self.unused)} parameters not used in the forward pass: {shown}")
        return "\n".join(lines)


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


def _layer(call: LayerCall, number: Map) -> Layer:
    op = call.op
    x, weight = op.inputs[1:3] if op.name == "addmm" else op.inputs[:2]
    made = op.outputs[0]
    outputs = None if call.outputs is None else number[call.outputs]
    inputs = None if call.inputs is None else number[call.inputs]
    if call.kind == "linear":
        positions, kernel = math.prod(made.shape[:-1]), 1
        output_width, input_width = made.shape[-1], x.shape[-1]
    else:
        space = x.shape if op.name.startswith("conv_transpose") else made.shape
        axis = len(made.shape) - len(weight.shape) + 1
        positions, kernel = math.prod(space) // space[axis], math.prod(weight.shape[2:])
        output_width, input_width = made.shape[axis], x.shape[axis] // int(op.arg(6, "groups", 1))
    return Layer(
        call.kind,
        weight.name,
        positions,
        kernel,
        outputs,
        inputs,
        output_width,
        input_width,
        op.index,
    )


def _components(count: int, ties: Iterable[tuple[Map, Map]]) -> tuple[Map, list[Map]]:
    """Smallest id of each channel's component, and the ids that are tied to fixed positions."""
    label = np.arange(count + 1)
    left, right, nailed = [], [], []
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
    facts = _Facts(
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
    wrong = unique[np.abs(total) > 1e-6]
    return wrong[(wrong != len(label) - 1) & (reason_of[wrong] < 0)]


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


def _unprunable(facts: _Facts) -> tuple[Unprunable, ...]:
    """Frozen channels by the layer that makes them and the reason."""
    tracker, label = facts.tracker, facts.label
    count = tracker.next_id
    starts = [start for start, _ in tracker.producers] + [count]
    reasons = facts.reason_of[label[:count]]
    alone = np.zeros(count + 1, bool)
    alone[facts.lonely] = True
    single = alone[label[:count]]
    table: dict[tuple[str, str], int] = {}
    for (start, name), stop in zip(tracker.producers, starts[1:], strict=True):
        if start in tracker.adopted:
            continue
        here = reasons[start:stop]
        for number in np.unique(here[here >= 0]):
            key = (name, facts.frozen_rows[int(number)][1])
            table[key] = table.get(key, 0) + int((here == number).sum())
        left = int(single[start:stop].sum())
        if left:
            key = (name, "all of them live or die together")
            table[key] = table.get(key, 0) + left
    return tuple(Unprunable(name, channels, reason) for (name, reason), channels in table.items())


def _remember(example: Example) -> tuple[Any, ...]:
    items = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    return tuple(
        (tuple(i.shape), i.dtype, i.device) if isinstance(i, Tensor) else i for i in items
    )


def _cost_model(graph: ChannelGraph) -> CostModel:
    """Every layer and every parameter as a product of two linear forms of the widths."""
    sizes = np.array([g.channels for g in graph.groups], np.int64)
    bounds = np.array([g.start for g in graph.groups], np.int64)
    rows: dict[bytes, int] = {}
    forms: list[NDArray[np.float64]] = []
    seen: dict[int, int] = {}

    def add(form: NDArray[np.float64]) -> int:
        key = form.tobytes()
        if key not in rows:
            rows[key] = len(forms)
            forms.append(form)
        return rows[key]

    def form_of(channels: Map | None, width: int) -> int:
        if channels is None:
            return one
        if id(channels) in seen:
            return seen[id(channels)]
        form = np.zeros(len(sizes) + 1)
        movable = channels[channels < graph.total]
        form[0] = len(channels) - len(movable)
        if len(movable):
            owner = np.searchsorted(bounds, movable, side="right") - 1
            form[1:] = np.bincount(owner, minlength=len(sizes)) / sizes
        seen[id(channels)] = add(form)
        return seen[id(channels)]

    one = add(np.concatenate([[1.0], np.zeros(len(sizes))]))
    terms: list[Term] = []
    for layer in graph.layers:
        scale = float(layer.positions * layer.kernel)
        left = form_of(layer.outputs, layer.output_width)
        right = form_of(layer.inputs, layer.input_width)
        if layer.outputs is None:
            scale *= layer.output_width
        if layer.inputs is None:
            scale *= layer.input_width
        terms.append(Term(left, right, (scale, 0.0, 0.0, 0.0)))
        if layer.kind == "conv":
            width = 1.0 if layer.outputs is not None else float(layer.output_width)
            terms.append(Term(left, one, (0.0, 0.0, width, 0.0)))
    varying: dict[str, dict[int, Map]] = {}
    for slot in graph.slots:
        if slot.role != "select":
            for name in slot.parameters:
                varying.setdefault(name, {})[slot.dim] = slot.channels
    for name, value in graph.tensors.items():
        dims = varying.get(name, {})
        fixed = 1.0
        sides = []
        for dim, size in enumerate(value.shape):
            if dim in dims:
                sides.append(form_of(dims[dim], size))
            else:
                fixed *= size
        sides += [one] * (2 - len(sides))
        counted = fixed if value.source == "parameter" else 0.0
        terms.append(Term(sides[0], sides[1], (0.0, counted, 0.0, fixed * value.dtype.itemsize)))
    return build_cost_model(np.array(forms), terms)
