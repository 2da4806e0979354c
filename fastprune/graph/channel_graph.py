"""What can be pruned in a network, what it costs, and where the channels are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import PlanError, nearest
from fastprune.graph.channels import ChannelTracker, Layer, LayerCall, Map
from fastprune.graph.cost import CostModel, Costs, cost_model_of
from fastprune.graph.plan import PruningPlan
from fastprune.graph.program import Program, Value
from fastprune.graph.trace import example_inputs
from fastprune.records import Cost, Widths

__all__ = ["ChannelGraph", "ChannelGroup", "Facts", "GroupSlot", "Slot", "Unprunable"]


class Slot(NamedTuple):
    """A dimension of one or more parameters that holds channels.

    Attributes:
        parameters: names in the network (for role ``select``: the norm layer that reads a
            selection).
        dim: which dimension.
        role: ``out`` and ``in`` side of a weight, ``group`` side of a grouped convolution's
            weight, ``bias``, ``scale`` (the γ of a norm layer), ``norm`` (its other vectors),
            ``shift`` (a bare parameter), ``divisor`` (a bare one that is divided by), ``index``
            and ``select`` (selections), ``selected scale`` (the γ a selection is judged by; stays
            whole).
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


class Facts(NamedTuple):
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
    _facts: Facts

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
        return cost_model_of(self)

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
        """As :meth:`cost`, MACs counted by a published rule: ``macs``, ``thop``, ``ptflops`` or
        ``metapruning``.
        """
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


def _unprunable(facts: Facts) -> tuple[Unprunable, ...]:
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
