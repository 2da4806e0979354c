"""A network as one Python file: layers by name, and a forward pass that is a list of steps.

What the steps are comes from torch.export, which follows the network with a batch of any size and
refuses what depends on the content of the images, so the file does what the network does.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from fastprune.errors import GraphError
from fastprune.run.export._calls import DEVICE, LAST, SKIPPED, call
from fastprune.run.export._layers import Layer, layer_of, layer_that_runs
from fastprune.run.export._weights import tied_names

__all__ = ["Source", "source_of"]


@dataclass(frozen=True, slots=True)
class Source:
    """The parts of a stand-alone file that are this network's own.

    Attributes:
        built: statements that make its layers, parameters and buffers.
        steps: statements of the forward pass from ``x`` on, the last one its ``return``.
        constants: tensors that it needs besides its ``state_dict``, by their names in the network.
        tied: names of tensors that are another one -> that one's name.
    """

    built: tuple[str, ...]
    steps: tuple[str, ...]
    constants: Mapping[str, Tensor]
    tied: Mapping[str, str]


def source_of(program: ExportedProgram, network: nn.Module) -> Source:
    """The network that ``program`` records, as Python.

    Args:
        program: a ``torch.export`` of ``network``, not decomposed, from images to one tensor.
        network: whose names the file has.

    Raises:
        GraphError: it has a step that plain torch cannot do; the message names it.
    """
    state = network.state_dict(keep_vars=True)
    layers = _layers(network)
    places = {name for name, _ in network.named_modules()}
    held, constants = _inputs(program, state)
    tied = tied_names(state)
    return Source(
        built=tuple(_built(state, tied, layers, constants)),
        steps=tuple(_steps(program, held, layers, places)),
        constants=constants,
        tied=tied,
    )


def _layers(network: nn.Module) -> dict[str, Layer]:
    found = (layer_of(name, module) for name, module in network.named_modules() if name)
    return {layer.name: layer for layer in found if layer is not None}


def _inputs(
    program: ExportedProgram, state: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What the program's inputs are called in the network, and those that no state_dict has."""
    held: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        name = spec.target
        tensors = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        if spec.kind not in tensors or name is None:
            raise GraphError(f"{spec.arg.name}: an input of this kind cannot be put into a file")
        if name not in state:
            tensor = program.constants[name]
            if not isinstance(tensor, Tensor):
                raise GraphError(f"{name}: expected a tensor, got a {type(tensor).__name__}")
            if spec.kind is InputKind.CONSTANT_TENSOR:
                name = _unused(re.sub(r"\W", "_", f"constant_{name}"), [*state, *constants])
            constants[name] = tensor.detach()
        held[spec.arg.name] = name
    return held, constants


def _unused(name: str, taken: list[str]) -> str:
    heads = {other.partition(".")[0] for other in taken}
    while name in heads or hasattr(nn.Module, name):
        name += "_"
    return name


def _built(
    state: Mapping[str, Tensor],
    tied: Mapping[str, str],
    layers: Mapping[str, Layer],
    constants: Mapping[str, Tensor],
) -> Iterator[str]:
    made: set[str] = set()
    for name, tensor in state.items():
        above, _, last = name.rpartition(".")
        if above in layers:
            if above not in made:
                made.add(above)
                yield f'put(self, "{above}", {layers[above].made_by})'
            if name in tied:
                yield f"{_path(above)}.{last} = {_path(tied[name])}"
        else:
            yield f'put(self, "{name}", {_path(tied[name]) if name in tied else _empty(tensor)})'
    for name, tensor in constants.items():
        yield f'put(self, "{name}", {_empty(tensor)}, persistent=False)'


def _empty(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    made = f"torch.empty({tuple(tensor.shape)}{dtype})"
    if not isinstance(tensor, nn.Parameter):
        return made
    fixed = "" if tensor.requires_grad else ", requires_grad=False"
    return f"nn.Parameter({made}{fixed})"


def _path(name: str) -> str:
    """``layer1.0.conv1.weight`` as Python reads it: ``self.layer1[0].conv1.weight``."""
    found = "self"
    for part in name.split("."):
        if part.isidentifier() and not keyword.iskeyword(part) and not part.startswith("__"):
            found += f".{part}"
        elif part.isdecimal() and part == str(int(part)):
            found += f"[{part}]"
        else:
            found = f'getattr({found}, "{part}")'
    return found


def _steps(
    program: ExportedProgram,
    held: Mapping[str, str],
    layers: Mapping[str, Layer],
    places: set[str],
) -> Iterator[str]:
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    results = [
        value
        for value, spec in zip(output.args[0], program.graph_signature.output_specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    state = {
        node: held[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in held
    }
    names = _Names(program.graph, results[0])
    lines: list[tuple[str, str]] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node not in state:
                names.start(node)
            continue
        if node.op != "call_function":
            if node.op == "get_attr":
                raise GraphError(
                    f"{node.target}: a part of the network that torch.export keeps as a network "
                    "of its own cannot be written as a list of steps"
                )
            continue
        if getattr(node.target, "__name__", "").partition(".")[0] in SKIPPED or _is_whole(node):
            continue
        lines.append((_place(node, places), _step(node, names, state, layers)))
    text = [line for _, line in lines]
    if any(re.search(rf"\b{DEVICE}\b", line) for line in text):
        yield f"{DEVICE} = x.device"
    place = ""
    for where, line in lines:
        if where != place:
            yield ""
            if where:
                yield f"# {where}"
            place = where
        yield line
    yield f"return {names.of(results[0], state)}"


def _step(
    node: fx.Node, names: _Names, state: Mapping[fx.Node, str], layers: Mapping[str, Layer]
) -> str:
    found = layer_that_runs(node, state, layers)
    if found is not None:
        layer, read = found
        made = f"{_path(layer.name)}({names.of(read, state)})"
    else:
        made = call(node, lambda other: names.of(other, state))
    if not node.users:
        return made
    return f"{names.give(node)} = {made}"


class _Names:
    """Names of the forward pass's variables.

    A name is free again when its value was read for the last time, so that a step's result takes
    the name of what it read: memory is given back as in the network's own code.
    """

    def __init__(self, graph: fx.Graph, result: fx.Node) -> None:
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._last: dict[fx.Node, int] = {}
        for node, place in self._order.items():
            for read in node.all_input_nodes:
                self._last[_source(read)] = place
        self._last[_source(result)] = len(self._order)
        self._named: dict[fx.Node, str] = {}
        self._free: dict[str, list[int]] = {}
        self._count: dict[str, int] = {}
        self._number: dict[fx.Node, int] = {}

    def start(self, node: fx.Node) -> None:
        """The images are ``x``."""
        self._name(node, "x", self._new("x"))

    def of(self, node: fx.Node, state: Mapping[fx.Node, str]) -> str:
        """What holds the result of ``node``."""
        node = _source(node)
        return _path(state[node]) if node in state else self._named[node]

    def give(self, node: fx.Node) -> str:
        """A name for the result of ``node``; those that it reads last are free for it."""
        for read in {_source(read) for read in node.all_input_nodes}:
            if read in self._named and self._last[read] == self._order[node]:
                self._free.setdefault(_kind(read), []).append(self._number[read])
        kind = _kind(node)
        free = self._free.get(kind, [])
        number = min(free) if free else self._new(kind)
        if free:
            free.remove(number)
        return self._name(node, kind, number)

    def _new(self, kind: str) -> int:
        count = self._count[kind] = self._count.get(kind, 0) + 1
        return count - 1

    def _name(self, node: fx.Node, kind: str, number: int) -> str:
        self._number[node] = number
        if kind == "x" and number < len(_LETTERS):
            self._named[node] = _LETTERS[number]
        else:
            self._named[node] = f"{kind}{number or ''}"
        return self._named[node]


def _is_whole(node: fx.Node) -> bool:
    """Whether it is a slice from the first to the last: the tensor itself."""
    if getattr(node.target, "__name__", "") != "slice.Tensor" or node.kwargs:
        return False
    start, end, step = [*node.args[2:], None, None, None][:3]
    return start in (None, 0) and end in (None, LAST) and step in (None, 1)


def _source(node: fx.Node) -> fx.Node:
    while _is_whole(node):
        (node,) = node.all_input_nodes
    return node


_LETTERS = ("x", "y", "z", "a", "b", "c", "d", "e", "g", "h")


def _kind(node: fx.Node) -> str:
    """``x`` for tensors, ``n`` for numbers, ``parts`` for several tensors in one."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return "x"
    return "parts" if isinstance(value, (list, tuple)) else "n"


def _place(node: fx.Node, places: set[str]) -> str:
    """The innermost module of the network's own code that the step is in."""
    stack = node.meta.get("nn_module_stack") or {}
    for name, kind in reversed(list(stack.values())):
        text = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if name in places and not text.startswith(("torch.nn.modules.", "fastprune.nn.")):
            return str(name)
    return ""
