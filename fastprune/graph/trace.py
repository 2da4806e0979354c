"""A network and an example to a Program: the network's own Python runs once, its arithmetic does
not.

Every functional call is caught by a ``TorchFunctionMode``. An op with a rule is not executed: the
rule knows its output's shape and hands on a zero-stride stand-in that owns one element of memory.
An op without one runs on the meta device. Nothing of the network is copied or changed.
"""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastprune.errors import GraphError
from fastprune.graph.program import Op, Program, TracedDim, Value
from fastprune.graph.rules import (
    CREATION,
    INPLACE_POSITION,
    METADATA,
    NATIVE,
    RULES,
    UNIFORM,
    op_name,
)

__all__ = ["Example", "Scan", "example_inputs", "scan", "trace_program", "used_parameters"]

Example = Tensor | tuple[Any, ...] | list[Any]

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


class Scan(NamedTuple):
    """What a network holds, from one walk over its modules.

    Attributes:
        modules: by name, each once.
        values: a Value for each parameter and buffer, by the tensor's id; its name is the first
            one.
    """

    modules: dict[str, nn.Module]
    values: dict[int, Value]


def scan(model: nn.Module) -> Scan:
    """Modules, parameters and buffers of a network. One walk, three times quicker than torch's
    three.

    Raises:
        GraphError: not a module, or one that cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise GraphError(
            "model: a TorchScript module cannot be traced; expected the nn.Module it was made from"
        )
    modules: dict[str, nn.Module] = {}
    values: dict[int, Value] = {}
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        prefix, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        modules[prefix] = module
        if prefix:
            prefix += "."
        held = module.__dict__
        if held["_parameters"]:
            for name, tensor in held["_parameters"].items():
                if tensor is not None and id(tensor) not in values:
                    values[id(tensor)] = Value(
                        len(values), tensor.shape, tensor.dtype, "parameter", prefix + name
                    )
        if held["_buffers"]:
            for name, tensor in held["_buffers"].items():
                if tensor is not None and id(tensor) not in values:
                    values[id(tensor)] = Value(
                        len(values), tensor.shape, tensor.dtype, "buffer", prefix + name
                    )
        if held["_modules"]:
            children = held["_modules"].items()
            stack.extend(
                [(prefix + name, child) for name, child in reversed(children) if child is not None]
            )
    return Scan(modules, values)


_PLAIN = frozenset(
    {int, float, bool, str, type(None), TracedDim, torch.dtype, torch.device, torch.memory_format}
)


class _Tracer(TorchFunctionMode):
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
            if not _FIRST.keys().isdisjoint(kwargs):
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
            like = next(_tensors((args, dict(kwargs))))
        shape = entry.shape(op) if entry.shape is not None else None
        if shape is not None and shape.__class__ is not list:
            result = self.stand_in(shape, like.dtype, like.device)
            made = (result,)
        else:
            result = self._result(entry, op, shape, args, kwargs, like)
            shape = None
            made = tuple(_tensors(result))
            if not made:
                return result
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
        devices = [t.device for t in _tensors((args, dict(kwargs)))]

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


@contextmanager
def _as_it_was(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    """Modules in or out of training mode, and afterwards as they were, with what they hold.

    A forward pass may keep what it computed (a cache, a running mean of its own); those are
    stand-ins here. Written past ``__setattr__``, which is ten times slower.
    """
    saved: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    others: list[dict[str, Any]] = []
    for module in modules:
        held = module.__dict__
        # torch's own layers keep nothing, unless a hook of theirs does (the older weight norm).
        if (
            module.__class__.__module__.startswith("torch.nn.modules.")
            and not held["_forward_pre_hooks"]
        ):
            if held["training"] is not training:
                held["training"] = training
                others.append(held)
            continue
        saved.append((held, held.copy()))
        for key, item in held.items():
            kind = item.__class__
            if (kind is dict or kind is OrderedDict) and (
                key[0] != "_" or (item and key in _HELD)
            ):
                saved.append((item, item.copy()))
            elif kind is list:
                lists.append((item, item.copy()))
        held["training"] = training
    try:
        yield
    finally:
        for held in others:
            held["training"] = not training
        for held, before in saved:
            if len(held) != len(before):
                held.clear()
            held.update(before)
        for now, then in lists:
            now[:] = then


_HELD = frozenset(("_parameters", "_buffers", "_modules"))


def _uncompiled(held: Scan) -> AbstractContextManager[Any]:
    """Runs what is wrapped in ``torch.compile`` as the Python that it is; else importing the
    compiler is not worth it.
    """
    if any(
        "_orig_mod" in name or m.__dict__.get("_compiled_call_impl")
        for name, m in held.modules.items()
    ):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


@contextmanager
def _same_draws() -> Iterator[None]:
    """Branches on random numbers (stochastic depth) go the same way in every trace, and nobody's
    draws are used up.
    """
    numbers, ours = torch.get_rng_state(), random.getstate()
    torch.default_generator.manual_seed(0)
    random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(numbers)
        random.setstate(ours)


def example_inputs(remembered: tuple[Any, ...]) -> tuple[Any, ...]:
    """Zeros of the remembered ``(shape, dtype, device)``, one element of memory each; other
    arguments as they are.
    """
    return tuple(
        torch.zeros((), dtype=item[1], device=item[2]).expand(item[0])
        if isinstance(item, tuple)
        else item
        for item in remembered
    )


def used_parameters(program: Program) -> set[str]:
    """Names of the parameters that some op read."""
    return {v.name for op in program.ops for v in op.inputs if v.source == "parameter"}


def _inputs(example: Example) -> tuple[Any, ...]:
    items = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if not any(isinstance(item, Tensor) for item in items):
        raise GraphError(
            f"example: expected a tensor or a tuple with tensors, got {type(example).__name__}"
        )
    return items


def trace_program(
    model: nn.Module, example: Example, *, training: bool = False, held: Scan | None = None
) -> Program:
    """What ``model`` does with ``example``, as a Program.

    Args:
        model: any module; it is neither copied nor changed. It is run in evaluation mode and
            without gradients.
        example: the input tensor, or a tuple of the positional arguments. Only shapes, dtypes and
            devices matter; of tensors with a batch of several, a batch of one is traced.
        training: run the modules in training mode instead (auxiliary heads).
        held: :func:`scan` of the model, where the caller has it already.

    Raises:
        GraphError: the network cannot be run on stand-ins for the example.
    """
    if held is None:
        held = scan(model)
    items = _inputs(example)
    one = tuple(_batch_of_one(item) for item in items)
    try:
        return _run(model, one, held, training)
    except GraphError:
        if all(a is b for a, b in zip(items, one, strict=True)):
            raise
        # The first axis may not be a batch, or inputs may have to agree on it.
        return _run(model, items, held, training)


def _batch_of_one(item: Any) -> Any:
    return item[:1] if isinstance(item, Tensor) and item.ndim > 1 and item.shape[0] > 1 else item


def _run(model: nn.Module, items: tuple[Any, ...], held: Scan, training: bool) -> Program:
    tracer = _Tracer(held)
    given = [
        tracer.stand_in(tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else x
        for x in items
    ]
    inputs = tuple(tracer.bind(t, tuple(t.shape), "input") for t in given if isinstance(t, Tensor))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with (
                _uncompiled(held),
                _as_it_was(held.modules.values(), training),
                _same_draws(),
                tracer,
            ):
                result = model(*given)
        except (
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            AssertionError,
            AttributeError,
        ) as problem:
            where = (
                f" after op {tracer.ops[-1].index} ({tracer.ops[-1].name})" if tracer.ops else ""
            )
            raise GraphError(
                "the network failed on an example of shape "
                f"{[list(v.shape) for v in inputs]}{where}: "
                f"{type(problem).__name__}: {problem}"
            ) from problem
    outputs = tuple(tracer.table[id(t)] for t in _returned(result) if id(t) in tracer.table)
    return Program(
        tuple(tracer.ops), inputs, outputs, tracer.count, tracer.constants, tuple(tracer.ruleless)
    )


def _returned(result: Any) -> Iterator[Tensor]:
    """Tensors of what a network returned; of its own kind of object, those of its attributes."""
    if not isinstance(result, (Tensor, tuple, list, Mapping)) and hasattr(result, "__dict__"):
        result = list(vars(result).values())
    yield from _tensors(result)
