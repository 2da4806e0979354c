"""A network and an example to a Program: the network's own Python runs once, its arithmetic does not.

Every functional call is caught by a ``TorchFunctionMode``. An op with a rule is not executed: the rule knows its
output's shape and hands on a zero-stride stand-in that owns one element of memory. An op without one runs on the
meta device. Nothing of the network is copied or changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastprune.errors import GraphError
from fastprune.graph.program import Op, Program, TracedDim, Value
from fastprune.graph.rules import INPLACE_POSITION, METADATA, NATIVE, RULES, op_name

__all__ = ["Example", "example_inputs", "trace_program", "used_parameters"]

Example = Tensor | tuple[Any, ...] | list[Any]

_SHAPE_GETTER = Tensor.shape.__get__  # type: ignore[attr-defined]
_TENSOR_TYPES = (Tensor, nn.Parameter)


class _FunctionEntry:
    """What the tracer knows of one torch function; looked up by the function object, made once a process."""

    __slots__ = ("inplace", "inplace_position", "metadata", "name", "native", "shape", "shape_query")

    def __init__(self, func: Callable[..., Any]) -> None:
        self.name, self.inplace = op_name(func)
        self.shape_query = func is _SHAPE_GETTER or func is Tensor.size
        self.metadata = self.name in METADATA
        self.native = self.name in NATIVE
        rule = RULES.get(self.name)
        self.shape = rule.shape if rule is not None else None
        self.inplace_position = INPLACE_POSITION.get(self.name, 1 << 30)


_ENTRIES: dict[Any, _FunctionEntry] = {}


class _Tracer(TorchFunctionMode):
    def __init__(self, names: dict[int, tuple[str, bool]], zeros: dict[Any, Tensor]) -> None:
        super().__init__()
        self.names = names
        self.zeros = zeros
        self.table: dict[int, Value] = {}
        self.alive: list[Any] = []
        self.ops: list[Op] = []
        self.count = 0
        self.ruleless: dict[str, None] = {}

    def stand_in(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (dtype, device)
        zero = self.zeros.get(key)
        if zero is None:
            zero = self.zeros[key] = torch.zeros((), dtype=dtype, device=device)
        return zero.expand(shape)

    def bind(self, tensor: Tensor, source: str, producer: int = -1, name: str = "") -> Value:
        value = Value(self.count, tuple(tensor.shape), tensor.dtype, source, name, producer)
        self.count += 1
        self.table[id(tensor)] = value
        self.alive.append(tensor)  # an id is only ours while the tensor lives
        return value

    def lift(self, tensor: Tensor) -> Value:
        value = self.table.get(id(tensor))
        if value is not None:
            return value
        known = self.names.get(id(tensor))
        if known is not None:
            return self.bind(tensor, "parameter" if known[1] else "buffer", name=known[0])
        value = self.bind(tensor, "constant")
        value.constant = tensor
        return value

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        try:
            entry = _ENTRIES[func]
        except KeyError:
            entry = _ENTRIES[func] = _FunctionEntry(func)
        if entry.metadata:
            result = func(*args, **kwargs)
            if entry.shape_query:
                if isinstance(result, int):
                    return TracedDim(result)
                return torch.Size([TracedDim(n) for n in result])
            return result

        inputs: list[Value] = []
        tensors: list[Tensor] = []
        lifted = [self._lift_argument(a, inputs, tensors) for a in args]
        lifted_kwargs = {k: self._lift_argument(a, inputs, tensors) for k, a in kwargs.items()}
        if not inputs or all(v.source == "constant" for v in inputs):
            return func(*args, **kwargs)
        if entry.inplace and inputs[0].source in ("parameter", "buffer"):
            return args[0]  # counters and running statistics are the network's, not ours to change

        op = Op(len(self.ops), entry.name, func, tuple(lifted), lifted_kwargs, inputs)
        if entry.name == "setitem":
            result = args[0]  # written in place; the rule freezes what it touches
        elif entry.native:
            result = func(*args, **kwargs)
        elif entry.shape is not None:
            shape = entry.shape(op)
            result = (
                self._from_shapes(shape, tensors[0]) if shape is not None else self._on_meta(op, args, kwargs)
            )
        else:
            self.ruleless[entry.name] = None
            result = self._on_meta(op, args, kwargs)
        made = list(_tensors(result))
        if not made and entry.name != "setitem":
            return result
        for value in inputs:
            value.uses += 1
        self.ops.append(op)
        in_place = (
            entry.inplace
            or entry.name == "setitem"
            or kwargs.get("inplace") is True
            or (len(args) > entry.inplace_position and args[entry.inplace_position] is True)
        )
        if in_place and tuple(made[0].shape) == inputs[0].shape:
            op.outputs.append(self.bind(args[0], "op", op.index))
            return args[0]
        for tensor in made:
            op.outputs.append(self.bind(tensor, "op", op.index))
        return result

    def _lift_argument(self, argument: Any, inputs: list[Value], tensors: list[Tensor]) -> Any:
        kind = argument.__class__
        if kind in _TENSOR_TYPES or isinstance(argument, Tensor):
            value = self.lift(argument)
            inputs.append(value)
            tensors.append(argument)
            return value
        if kind is tuple or kind is list:
            return kind([self._lift_argument(a, inputs, tensors) for a in argument])
        return argument

    def _from_shapes(self, shape: Any, like: Tensor) -> Any:
        dtype, device = like.dtype, like.device
        if isinstance(shape, list):
            return tuple(self.stand_in(s, dtype, device) for s in shape)
        return self.stand_in(shape, dtype, device)

    def _on_meta(self, op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        devices = [t.device for t in _tensors((args, dict(kwargs)))]

        def to_meta(t: Tensor) -> Tensor:
            return torch.empty(t.shape, dtype=t.dtype, device="meta")

        try:
            result = op.func(*_map(to_meta, args), **_map(to_meta, dict(kwargs)))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as problem:
            # Ops whose result depends on data, or that have no meta kernel, run on the zeros themselves.
            try:
                return op.func(*args, **kwargs)
            except (NotImplementedError, RuntimeError, TypeError, ValueError):
                raise GraphError(f"tracing stopped at op {op.index}, {op.name}: {problem}") from problem
        return _map(lambda t: self.stand_in(tuple(t.shape), t.dtype, devices[0]), result)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from _tensors(item)
    elif hasattr(tree, "__dataclass_fields__"):
        for name in tree.__dataclass_fields__:
            yield from _tensors(getattr(tree, name))


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(function, item) for item in tree))
    if isinstance(tree, tuple) and type(tree) is not tuple and not isinstance(tree, torch.Size):
        # torch.return_types.*: built from one sequence
        return type(tree)([_map(function, item) for item in tree])
    if type(tree) in (tuple, list):
        return type(tree)(_map(function, item) for item in tree)
    if isinstance(tree, dict):
        return {k: _map(function, item) for k, item in tree.items()}
    return tree


def _scan(model: nn.Module) -> tuple[dict[int, tuple[str, bool]], list[nn.Module]]:
    """Names of all parameters (True) and buffers (False) by tensor id, and the modules in training mode."""
    names: dict[int, tuple[str, bool]] = {}
    training: list[nn.Module] = []
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        prefix, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if module.training:
            training.append(module)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), (prefix + name, True))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                names.setdefault(id(buffer), (prefix + name, False))
        children = [(f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None]
        stack.extend(reversed(children))
    return names, training


@contextmanager
def _training(modules: list[nn.Module], flag: bool) -> Iterator[None]:
    """Training mode of ``modules`` set to ``flag`` and back. Written past ``__setattr__``, which is ten times slower."""
    for module in modules:
        module.__dict__["training"] = flag
    try:
        yield
    finally:
        for module in modules:
            module.__dict__["training"] = not flag


def example_inputs(remembered: tuple[Any, ...]) -> tuple[Any, ...]:
    """Zeros of the remembered ``(shape, dtype, device)``, one element of memory each; other arguments as they are."""
    return tuple(
        torch.zeros((), dtype=item[1], device=item[2]).expand(item[0]) if isinstance(item, tuple) else item
        for item in remembered
    )


def used_parameters(program: Program) -> set[str]:
    """Names of the parameters that some op read."""
    return {v.name for op in program.ops for v in op.inputs if v.source == "parameter"}


def _inputs(example: Example) -> tuple[Any, ...]:
    items = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if not any(isinstance(item, Tensor) for item in items):
        raise GraphError(f"example: expected a tensor or a tuple with tensors, got {type(example).__name__}")
    return items


def trace_program(model: nn.Module, example: Example, *, training: bool = False) -> Program:
    """What ``model`` does with ``example``, as a Program.

    Args:
        model: any module; it is neither copied nor changed. It is run in evaluation mode and without gradients.
        example: the input tensor, or a tuple of the positional arguments. Only shapes, dtypes and devices matter;
            of tensors with a batch of several, a batch of one is traced.
        training: run the modules in training mode instead (auxiliary heads).

    Raises:
        GraphError: the network cannot be run on stand-ins for the example.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise GraphError("model: a TorchScript module cannot be traced; expected the nn.Module it was made from")
    names, in_training = _scan(model)
    others = [m for m in model.modules() if not m.training] if training else in_training
    tracer = _Tracer(names, {})
    items = list(_inputs(example))
    for i, item in enumerate(items):
        if isinstance(item, Tensor):
            shape = tuple(item.shape)
            if len(shape) > 1 and shape[0] > 1:
                shape = (1, *shape[1:])
            items[i] = tracer.stand_in(shape, item.dtype, item.device)
    inputs = tuple(tracer.bind(t, "input") for t in items if isinstance(t, Tensor))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _training(others, training), tracer:
                result = model(*items)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, AttributeError) as problem:
            where = f" after op {tracer.ops[-1].index} ({tracer.ops[-1].name})" if tracer.ops else ""
            raise GraphError(
                f"the network failed on an example of shape {[list(v.shape) for v in inputs]}{where}: {problem}"
            ) from problem
    outputs = tuple(tracer.table[id(t)] for t in _tensors(result) if id(t) in tracer.table)
    return Program(tuple(tracer.ops), inputs, outputs, tracer.count, tuple(tracer.ruleless))
