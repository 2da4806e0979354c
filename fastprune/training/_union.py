"""Many networks of one family as one graph: a step that several have in common is there once.

Two steps are the same where they call the same function with the same plain arguments on the same
weights and on results of the same steps. All that a step's result depends on is in its key, so
what is computed once for several networks is what each would have computed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.errors import GraphError
from fastprune.graph.program import Op, Program, Value
from fastprune.graph.rules import INPLACE_POSITION, op_name
from fastprune.graph.trace import trace_program

__all__ = ["Arguments", "Node", "Ref", "Subnet", "Union", "Weight", "union_of"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Of a call; tensors stand as `Ref` and `Weight`."""


class Subnet(NamedTuple):
    """One candidate.

    Attributes:
        module: the network, in evaluation mode; its weights may be on the meta device.
        weights: name -> (key, tensor) of every parameter and buffer. Where keys are equal, the
            tensors have to be.
        bare: whether batch norms without running statistics are to be given some by
            recalibration; otherwise they take those of each batch, as they do elsewhere.
    """

    module: nn.Module
    weights: Mapping[str, tuple[Hashable, Tensor]]
    bare: bool = False


class Ref(NamedTuple):
    """A result of a step, one of several perhaps; the input is the result of step -1."""

    node: int
    position: int


class Weight(NamedTuple):
    """A tensor that no step makes: its place in `Union.weights`."""

    place: int


@dataclass(frozen=True, slots=True)
class Node:
    """A step.

    Attributes:
        func: what it calls; nothing that writes in place.
        name: of the op.
        inputs: results it reads.
        candidate: one that has it.
        bytes: of its results, for one image.
    """

    func: Callable[..., Any]
    name: str
    inputs: tuple[Ref, ...]
    candidate: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Union:
    """All steps of some candidates.

    Attributes:
        nodes: each after those it reads.
        calls: the arguments of each, for one image.
        weights: the tensors.
        steps: for each candidate, the node of each op of its program.
        paths: for each candidate, those of them that its logits follow from, in order.
        outputs: for each candidate, its logits.
        names: for each candidate, weights by name.
        modules: the candidates.
    """

    nodes: tuple[Node, ...]
    calls: Sequence[Arguments]
    weights: tuple[Tensor, ...]
    steps: tuple[tuple[int, ...], ...]
    paths: tuple[tuple[int, ...], ...]
    outputs: tuple[Ref, ...]
    names: tuple[Mapping[str, Weight], ...]
    modules: tuple[nn.Module, ...]

    def arguments(self, example: Tensor) -> Sequence[Arguments]:
        """The arguments of every step, for batches of the size of ``example``.

        Raises:
            GraphError: a network takes other steps for a batch of this size.
        """
        # Where the first network's do not depend on the size, those of its kind do not either.
        if all(
            _hashable(arguments) == _hashable(self.calls[step])
            for step, arguments in self._arguments_of(0, example)
        ):
            return self.calls
        found = list(self.calls)
        for candidate in {node.candidate for node in self.nodes}:
            for step, arguments in self._arguments_of(candidate, example):
                if self.nodes[step].candidate == candidate:
                    found[step] = arguments
        return found

    def _arguments_of(self, candidate: int, example: Tensor) -> list[tuple[int, Arguments]]:
        program = _traced(self.modules[candidate], example)
        steps = self.steps[candidate]
        if [self.nodes[step].name for step in steps] != [op.name for op in program.ops]:
            raise GraphError(
                f"shared evaluation: the network takes other steps for {len(example)} images "
                "than for one"
            )
        refs = _known(program, self.names[candidate])
        found = []
        for step, op in zip(steps, program.ops, strict=True):
            found.append((step, _arguments(op, refs)))
            refs.update(_results(op, step))
        return found


def union_of(subnets: Sequence[Subnet], example: Tensor) -> Union:
    """The steps of all candidates, each once.

    Args:
        subnets: the candidates.
        example: ``[1, C, H, W]``; only its shape, dtype and device matter.

    Raises:
        GraphError: a network cannot be traced, holds constants that are not its weights, or does
            not give one tensor.
    """
    made = _Builder()
    for number, subnet in enumerate(subnets):
        made.add(number, subnet, example)
    return Union(
        nodes=tuple(made.nodes),
        calls=tuple(made.calls),
        weights=tuple(made.weights),
        steps=tuple(made.steps),
        paths=tuple(_path(made.nodes, output) for output in made.outputs),
        outputs=tuple(made.outputs),
        names=tuple(made.names),
        modules=tuple(subnet.module for subnet in subnets),
    )


class _Builder:
    """Nodes and weights so far, found again by their keys."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.calls: list[Arguments] = []
        self.weights: list[Tensor] = []
        self.steps: list[tuple[int, ...]] = []
        self.outputs: list[Ref] = []
        self.names: list[dict[str, Weight]] = []
        self._node_of: dict[Hashable, int] = {}
        self._weight_of: dict[Hashable, Weight] = {}

    def add(self, number: int, subnet: Subnet, example: Tensor) -> None:
        program = _traced(subnet.module, example)
        names = {name: self._weight(*weight) for name, weight in subnet.weights.items()}
        refs = _known(program, names)
        steps = []
        for op in program.ops:
            arguments = _arguments(op, refs)
            key = (op.func, _hashable(arguments))
            step = self._node_of.setdefault(key, len(self.nodes))
            if step == len(self.nodes):
                inputs = tuple(r for r in _tensors(arguments) if isinstance(r, Ref))
                size = sum(_bytes(value) for value in op.outputs)
                self.nodes.append(Node(_out_of_place(op), op.name, inputs, number, size))
                self.calls.append(arguments)
            steps.append(step)
            refs.update(_results(op, step))
        if len(program.outputs) != 1:
            raise GraphError(
                f"shared evaluation: expected one tensor from the network, got "
                f"{len(program.outputs)}"
            )
        output = refs[program.outputs[0].id]
        if not isinstance(output, Ref):
            raise GraphError("shared evaluation: the network's output does not follow from steps")
        self.steps.append(tuple(steps))
        self.outputs.append(output)
        self.names.append(names)

    def _weight(self, key: Hashable, tensor: Tensor) -> Weight:
        found = self._weight_of.setdefault(key, Weight(len(self.weights)))
        if found.place == len(self.weights):
            self.weights.append(tensor)
        elif self.weights[found.place].shape != tensor.shape:
            raise ValueError(f"weights of key {key!r} have two shapes")
        return found


def _traced(module: nn.Module, example: Tensor) -> Program:
    program = trace_program(module, example, whole=True)
    if program.constants:
        raise GraphError(
            "shared evaluation: the network's forward pass makes constants of its own; make them "
            "buffers of the network"
        )
    return program


def _known(program: Program, names: Mapping[str, Weight]) -> dict[int, Ref | Weight]:
    """What stands for the values that are there before the first step, by their ids."""
    refs: dict[int, Ref | Weight] = {
        value.id: Ref(-1, position) for position, value in enumerate(program.inputs)
    }
    for op in program.ops:
        for value in op.inputs:
            if value.source in ("parameter", "buffer"):
                refs[value.id] = names[value.name]
    return refs


def _results(op: Op, step: int) -> dict[int, Ref]:
    return {value.id: Ref(step, position) for position, value in enumerate(op.outputs)}


def _arguments(op: Op, refs: Mapping[int, Ref | Weight]) -> Arguments:
    args = [_lifted(argument, refs) for argument in op.args]
    kwargs = {name: _lifted(argument, refs) for name, argument in op.kwargs.items()}
    if kwargs.get("inplace") is True:
        kwargs["inplace"] = False
    position = INPLACE_POSITION.get(op.name)
    if position is not None and position < len(args) and args[position] is True:
        args[position] = False
    return tuple(args), kwargs


def _lifted(argument: Any, refs: Mapping[int, Ref | Weight]) -> Any:
    if isinstance(argument, Value):
        return refs[argument.id]
    if isinstance(argument, int) and not isinstance(argument, bool):
        return int(argument)
    if type(argument) in (tuple, list):
        return tuple(_lifted(item, refs) for item in argument)
    return argument


def _out_of_place(op: Op) -> Callable[..., Any]:
    """The op's function, or the one that gives what it would have written.

    Raises:
        GraphError: there is none.
    """
    name, inplace = op_name(op.func)
    if name == "setitem":
        raise GraphError(
            "shared evaluation: the network writes into a part of a tensor, which other networks "
            "may have in common with it"
        )
    if not inplace:
        func: Callable[..., Any] = op.func
        return func
    for place in (torch, F, Tensor):
        if hasattr(place, name):
            found: Callable[..., Any] = getattr(place, name)
            return found
    raise GraphError(f"shared evaluation: {name} only works in place")


def _tensors(tree: Any) -> list[Ref | Weight]:
    if isinstance(tree, (Ref, Weight)):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if type(tree) is tuple:
        return [found for item in tree for found in _tensors(item)]
    return []


def _hashable(tree: Any) -> Hashable:
    if isinstance(tree, dict):
        return tuple((name, _hashable(item)) for name, item in sorted(tree.items()))
    if type(tree) is tuple:
        return tuple(_hashable(item) for item in tree)
    if isinstance(tree, slice):
        return ("slice", _hashable(tree.start), _hashable(tree.stop), _hashable(tree.step))
    # 1, 1.0 and True are equal, and not the same to a function.
    return type(tree), tree


def _bytes(value: Value) -> int:
    return int(torch.Size(value.shape).numel()) * value.dtype.itemsize


def _path(nodes: Sequence[Node], output: Ref) -> tuple[int, ...]:
    """The steps that a result follows from, in order."""
    needed, stack = set(), [output.node]
    while stack:
        step = stack.pop()
        if step >= 0 and step not in needed:
            needed.add(step)
            stack += [ref.node for ref in nodes[step].inputs]
    # A node is made after those it reads.
    return tuple(sorted(needed))
