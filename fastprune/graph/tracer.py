"""Catches every torch function of one run and writes it down instead of running it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastprune.errors import GraphError
from fastprune.graph.program import Op, TracedDim, Value
from fastprune.graph.rules import (
    CREATION,
    INPLACE_POSITION,
    METADATA,
    NATIVE,
    RULES,
    UNIFORM,
    op_name,
)
from fastprune.graph.scan import Scan

__all__ = ["Tracer", "tensors_of"]

# Compared by ==: a fresh wrapper of the getter comes with every call.
_SHAPE_QUERIES = (Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement, torch.numel)  # type: ignore[attr-defined]

# Tensor arguments by name come in the rules' order, whatever order the caller wrote.
_FIRST = {"input": 0, "query": 0, "self": 0, "key": 1, "other": 1, "weight": 1, "value": 2}


class _FunctionEntry:
    """What the tracer knows of one torch function; looked up by the function object, made once a
    process.
    """

    __slots__ = (
        "inplace",
        "inplace_position",
        "metadata",
        "name",
        "native",
        "ruled",
        "shape",
        "shape_query",
        "sized",
    )

    def __init__(self, func: Callable[..., Any]) -> None:
        self.name, self.inplace = op_name(func)
        self.inplace = self.inplace or self.name == "setitem"
        self.shape_query = func in _SHAPE_QUERIES
        self.metadata = self.name in METADATA
        self.native = self.name in NATIVE
        self.ruled = self.name in RULES
        self.sized = self.name in UNIFORM or self.name in CREATION
        rule = RULES.get(self.name)
        self.shape = rule.shape if rule is not None else None
        self.inplace_position = INPLACE_POSITION.get(self.name, 1 << 30)


_ENTRIES: dict[Any, _FunctionEntry] = {}

# ``x.data.size()``, ``x[0].numel()``: what is made only to be asked for its size needs no reader.
_VIEWED_FOR_SIZE = ("data", "detach", "getitem")


_PLAIN = frozenset(
    {int, float, bool, str, type(None), TracedDim, torch.dtype, torch.device, torch.memory_format}
)


class Tracer(TorchFunctionMode):
    """Writes down every call. Hot: a call of a ResNet costs a few microseconds, most of it torch's
    own dispatch.
    """

    def __init__(self, held: Scan) -> None:
        super().__init__()
        self.table = dict(held.values)
        self.count = len(held.values)
        self.alive: list[Any] = []
        self.ops: list[Op] = []
        self.constants: dict[int, Tensor] = {}
        self.ruleless: dict[str, None] = {}
        self.key: tuple[torch.dtype, torch.device] = (torch.float32, torch.device("cpu"))
        self.templates: dict[tuple[int, ...], Tensor] = {}
        self.others: dict[tuple[torch.dtype, torch.device], dict[tuple[int, ...], Tensor]] = {
            self.key: self.templates
        }

    def stand_in(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A new tensor of this shape with one element of memory. ``.data`` of a template is five
        times quicker than expand.
        """
        if dtype is not self.key[0] or device != self.key[1]:
            self.key = (dtype, device)
            self.templates = self.others.setdefault(self.key, {})
        template = self.templates.get(shape)
        if template is None:
            zero = torch.zeros((), dtype=dtype, device=device)
            template = self.templates[shape] = zero.expand(shape)
        return template.data

    def bind(
        self, tensor: Tensor, shape: tuple[int, ...], source: str, producer: int = -1
    ) -> Value:
        count = self.count
        self.count = count + 1
        value = self.table[id(tensor)] = Value(count, shape, tensor.dtype, source, "", producer)
        self.alive.append(tensor)  # an id is only ours while the tensor lives
        return value

    def lift(self, tensor: Tensor) -> Value:
        value = self.table.get(id(tensor))
        if value is None:
            value = self.bind(tensor, tuple(tensor.shape), "constant")
            self.constants[value.id] = tensor
        return value

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        entry = _ENTRIES.get(func)
        if entry is None:
            entry = _ENTRIES[func] = _FunctionEntry(func)
        if entry.metadata:
            result = func(*args, **kwargs) if kwargs else func(*args)
            if entry.shape_query:
                return self._traced(result, args, kwargs or {})
            return result

        inputs: list[Value] = []
        lifted: list[Any] = []
        lifted_kwargs: dict[str, Any] = {}
        table, like = self.table, None
        for argument in args:
            kind = argument.__class__
            if kind in _PLAIN:
                lifted.append(argument)
            elif kind is Tensor or kind is nn.Parameter:
                value = table.get(id(argument))
                if value is None:
                    value = self.lift(argument)
                inputs.append(value)
                lifted.append(value)
                if like is None:
                    like = argument
            elif (
                kind is tuple
                and len(argument) == 2
                and argument[0].__class__ is argument[1].__class__ is int
            ):
                lifted.append(argument)
            else:
                lifted.append(self._lift_argument(argument, inputs))
        if kwargs:
            if len(inputs) < 2 and not _FIRST.keys().isdisjoint(kwargs):
                kwargs = dict(sorted(kwargs.items(), key=lambda item: _FIRST.get(item[0], 3)))
            for key, argument in kwargs.items():
                kind = argument.__class__
                if kind in _PLAIN:
                    lifted_kwargs[key] = argument
                elif (kind is Tensor or kind is nn.Parameter) and id(argument) in table:
                    value = lifted_kwargs[key] = table[id(argument)]
                    inputs.append(value)
                else:
                    lifted_kwargs[key] = self._lift_argument(argument, inputs)
        else:
            kwargs = lifted_kwargs
        for value in inputs:
            if value.source != "constant":
                break
        else:
            return self._without_inputs(entry, func, args, kwargs)
        if entry.inplace and inputs[0].source in ("parameter", "buffer"):
            return args[0]  # counters and running statistics are the network's, not ours to change

        ops = self.ops
        index = len(ops)
        op = Op(index, entry.name, func, lifted, lifted_kwargs, inputs)
        if like is None:
            like = next(tensors_of((args, dict(kwargs))))
        shape: tuple[int, ...] | None = None
        made: tuple[Tensor, ...]
        ruled = entry.shape(op) if entry.shape is not None else None
        if ruled is None or isinstance(ruled, list):
            result = self._result(entry, op, ruled, args, kwargs, like)
            made = tuple(tensors_of(result))
            if not made:
                return result
        else:
            shape = ruled
            result = self.stand_in(shape, like.dtype, like.device)
            made = (result,)
        for value in inputs:
            value.uses += 1
        ops.append(op)
        if (
            shape is not None
            and not entry.inplace
            and "inplace" not in kwargs
            and len(args) <= entry.inplace_position
        ):
            count = self.count
            self.count = count + 1
            value = table[id(result)] = Value(count, shape, like.dtype, "op", "", index)
            self.alive.append(result)
            op.outputs = [value]
            return result
        if (
            entry.inplace
            or ("inplace" in kwargs and kwargs["inplace"] is True)
            or (len(args) > entry.inplace_position and args[entry.inplace_position] is True)
        ) and tuple(made[0].shape) == inputs[0].shape:
            target = args[0] if args else like
            op.outputs.append(self.bind(target, inputs[0].shape, "op", index))
            return target
        for tensor in made:
            op.outputs.append(self.bind(tensor, shape or tuple(tensor.shape), "op", index))
        return result

    def _without_inputs(
        self,
        entry: _FunctionEntry,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Constants stay as they are, unless their size or content was computed from a tensor's
        shape.
        """
        result = func(*args, **kwargs)
        if entry.sized and _computed_from_sizes((args, tuple(kwargs.values()))):
            op = Op(len(self.ops), entry.name, func, list(args), dict(kwargs), [])
            self.ops.append(op)
            if entry.name in UNIFORM:
                op.outputs.append(self.bind(result, tuple(result.shape), "op", op.index))
        return result

    def _traced(self, answer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A size, or all of them, that knows the tensor it was read from."""
        value = self.table.get(id(args[0] if args else kwargs.get("input")))
        if value is None:
            return answer
        if value.producer >= 0 and self.ops[value.producer].name in _VIEWED_FOR_SIZE:
            value.uses += 1
        if not isinstance(answer, int):
            return torch.Size(
                [TracedDim(n, ((value.id, axis, 1),)) for axis, n in enumerate(answer)]
            )
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        axes = range(len(value.shape)) if dim is None else (int(dim) % len(value.shape),)
        return TracedDim(
            answer, tuple((value.id, a, answer / value.shape[a]) for a in axes if value.shape[a])
        )

    def _result(
        self,
        entry: _FunctionEntry,
        op: Op,
        shapes: list[tuple[int, ...]] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        like: Tensor,
    ) -> Any:
        """What the call returns, without its arithmetic: several stand-ins, a view, or from the
        meta device.
        """
        if shapes is not None:
            return tuple(self.stand_in(s, like.dtype, like.device) for s in shapes)
        if entry.native:
            return op.func(*args, **kwargs)
        if entry.name == "setitem":
            return args[0]  # written in place; there is no rule, so what it touches is frozen
        if not entry.ruled:
            self.ruleless[entry.name] = None
        return self._on_meta(op, args, kwargs)

    def _lift_argument(self, argument: Any, inputs: list[Value]) -> Any:
        if isinstance(argument, Tensor):
            value = self.lift(argument)
            inputs.append(value)
            return value
        if argument.__class__ in (tuple, list):
            return argument.__class__([self._lift_argument(a, inputs) for a in argument])
        return argument

    def _on_meta(self, op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        devices = [t.device for t in tensors_of((args, dict(kwargs)))]

        def to_meta(t: Tensor) -> Tensor:
            return torch.empty(t.shape, dtype=t.dtype, device="meta")

        try:
            result = op.func(*_map(to_meta, args), **_map(to_meta, dict(kwargs)))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as problem:
            # Ops whose result depends on data, or that have no meta kernel, run on the zeros
            # themselves.
            try:
                return op.func(*args, **kwargs)
            except (NotImplementedError, RuntimeError, TypeError, ValueError):
                raise GraphError(
                    f"tracing stopped at op {op.index}, {op.name}: {problem}"
                ) from problem
        return _map(lambda t: self.stand_in(tuple(t.shape), t.dtype, devices[0]), result)


def _computed_from_sizes(tree: Any) -> bool:
    if isinstance(tree, (tuple, list)):
        return any(_computed_from_sizes(item) for item in tree)
    return isinstance(tree, TracedDim)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_of(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors_of(item)
    elif hasattr(tree, "__dataclass_fields__"):
        for name in tree.__dataclass_fields__:
            yield from tensors_of(getattr(tree, name))


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
