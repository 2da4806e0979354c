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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastprune.errors import GraphError
from fastprune.graph.program import Program
from fastprune.graph.scan import Scan, scan
from fastprune.graph.tracer import Tracer, tensors_of

__all__ = ["Example", "Scan", "example_inputs", "scan", "trace_program", "used_parameters"]

Example = Tensor | tuple[Any, ...] | list[Any]


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
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return eager
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
    model: nn.Module,
    example: Example,
    *,
    training: bool = False,
    whole: bool = False,
    held: Scan | None = None,
) -> Program:
    """What ``model`` does with ``example``, as a Program.

    Args:
        model: any module; it is neither copied nor changed. It is run in evaluation mode and
            without gradients.
        example: the input tensor, or a tuple of the positional arguments. Only shapes, dtypes and
            devices matter; of tensors with a batch of several, a batch of one is traced.
        training: run the modules in training mode instead (auxiliary heads).
        whole: trace the batch as it is, and not one of one; sizes are then those of this batch.
        held: :func:`scan` of the model, where the caller has it already.

    Raises:
        GraphError: the network cannot be run on stand-ins for the example.
    """
    if held is None:
        held = scan(model)
    items = _inputs(example)
    if whole:
        return _run(model, items, held, training)
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
    tracer = Tracer(held)
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
    yield from tensors_of(result)
