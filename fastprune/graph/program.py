"""The record of one run of a network: values and the ops between them, in order. No arithmetic, no
tensors kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Op", "Program", "TracedDim", "Value"]

Shape = tuple[int, ...]


Origin = tuple[tuple[int, int, float], ...]


class TracedDim(int):
    """A size that the forward pass read from a tensor's shape, or computed from one.

    ``x.view(n, c // 2, 2)`` follows a smaller ``x`` when ``c`` came from ``x.shape``; ``x.view(n,
    64, 2)`` does not. Arithmetic on a traced size gives a traced size, so a rule can tell the two
    apart.

    Attributes:
        origin: (value id, axis, factor): how fast it grows with each of the sizes that it was
            computed from.
    """

    origin: Origin

    def __new__(cls, value: int, origin: Origin = ()) -> TracedDim:
        self = int.__new__(cls, value)
        self.origin = origin
        return self

    def _linear(self, value: int, other: Any, mine: float, others: float) -> TracedDim:
        origin = _scaled(self.origin, mine)
        if other.__class__ is TracedDim:
            origin += _scaled(other.origin, others)
        return TracedDim(value, origin)

    def __add__(self, other: int) -> TracedDim:
        return self._linear(int(self) + other, other, 1, 1)

    def __sub__(self, other: int) -> TracedDim:
        return self._linear(int(self) - other, other, 1, -1)

    def __rsub__(self, other: int) -> TracedDim:
        return self._linear(other - int(self), other, -1, 1)

    def __neg__(self) -> TracedDim:
        return TracedDim(-int(self), _scaled(self.origin, -1))

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return int(self) * other
        return self._linear(int(self) * other, other, int(other), int(self))

    def __floordiv__(self, other: int) -> TracedDim:
        return self._linear(int(self) // other, other, 1 / other, -int(self) / other**2)

    def __mod__(self, other: int) -> TracedDim:
        # Zero wherever sizes stay divisible, which the rules see to.
        return TracedDim(int(self) % other)

    __radd__ = __add__
    __rmul__ = __mul__


def _scaled(origin: Origin, factor: float) -> Origin:
    return origin if factor == 1 else tuple((value, axis, f * factor) for value, axis, f in origin)


class Value:
    """One tensor of the run.

    Attributes:
        id: number, in order of appearance.
        shape: sizes in the traced run.
        dtype: element type.
        source: ``input``, ``op``, ``parameter``, ``buffer``, ``constant``.
        name: the parameter's or buffer's name in the network, else "".
        producer: index of the op that made it, or -1.
        uses: how many ops read it.
    """

    __slots__ = ("dtype", "id", "name", "producer", "shape", "source", "uses")

    def __init__(
        self,
        id: int,
        shape: Shape,
        dtype: torch.dtype,
        source: str,
        name: str = "",
        producer: int = -1,
    ) -> None:
        self.id = id
        self.shape = shape
        self.dtype = dtype
        self.source = source
        self.name = name
        self.producer = producer
        self.uses = 0

    def __repr__(self) -> str:
        return f"%{self.id}{list(self.shape)}" + (f":{self.name}" if self.name else "")


class Op:
    """One functional call.

    Attributes:
        index: position in the program.
        name: the function's name without in-place underscores (``conv2d``, ``add``, ``relu``).
        func: the torch function that was called.
        args, kwargs: its arguments, every tensor replaced by its Value.
        inputs: the Values among the arguments, in order.
        outputs: the Values it made.
    """

    __slots__ = ("args", "func", "index", "inputs", "kwargs", "name", "outputs")

    def __init__(
        self,
        index: int,
        name: str,
        func: Callable[..., Any],
        args: list[Any],
        kwargs: dict[str, Any],
        inputs: list[Value],
    ) -> None:
        self.index = index
        self.name = name
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.inputs = inputs
        self.outputs: list[Value] = []

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at ``position`` or called ``name``."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def __repr__(self) -> str:
        made = ", ".join(map(repr, self.outputs))
        return f"{self.index}: {made} = {self.name}({', '.join(map(repr, self.inputs))})"


@dataclass(frozen=True, slots=True)
class Program:
    """What a network does with one example.

    Attributes:
        ops: the calls in order.
        inputs: the Values of the example.
        outputs: the Values the network returned, flattened.
        values: how many Values there are.
        constants: tensors that are neither inputs nor the network's own, by Value id.
        ruleless: names of the functions that had no rule, in order of appearance.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: int
    constants: dict[int, torch.Tensor]
    ruleless: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(map(repr, self.ops))
