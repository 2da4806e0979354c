"""One recorded call of torch as a line of Python that a person would write."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fastprune.errors import GraphError

__all__ = ["DEVICE", "LAST", "SKIPPED", "call"]

DEVICE = "device"
"""What a call that makes a tensor names as its place: that of the images."""

SKIPPED = frozenset(("_assert_tensor_metadata", "_assert_scalar", "_assert_async"))
"""Calls that compute nothing: what torch.export adds to hold a dtype or a device."""

LAST = 2**63 - 1
"""The end of a slice that has none."""

# The same arguments in the same order as aten's; they dispatch to the op that was recorded.
_FUNCTIONAL = frozenset(
    [
        *("conv1d.default", "conv2d.default", "conv3d.default", "linear.default"),
        *("relu.default", "relu_.default", "hardtanh.default", "hardtanh_.default"),
        *("silu.default", "gelu.default", "hardswish.default", "hardsigmoid.default"),
        *("max_pool2d.default", "avg_pool2d.default"),
        *("adaptive_avg_pool2d.default", "pad.default"),
        "scaled_dot_product_attention.default",
    ]
)
_TORCH = frozenset(
    [
        *("cat.default", "stack.default", "flatten.using_ints", "index_select.default"),
        *("chunk.default", "split.Tensor", "split_with_sizes.default", "roll.default"),
        *("mean.dim", "sum.dim_IntList", "softmax.int", "sigmoid.default", "tanh.default"),
        *("permute.default", "transpose.int", "squeeze.dim", "unsqueeze.default"),
        *("matmul.default", "bmm.default", "layer_norm.default"),
    ]
)
_METHODS = frozenset(
    [
        *("view.default", "reshape.default", "expand.default", "repeat.default"),
        *("contiguous.default", "clone.default", "add_.Tensor", "mul_.Tensor", "to.dtype"),
    ]
)
_SIGNS = {"add.Tensor": "+", "sub.Tensor": "-", "mul.Tensor": "*", "div.Tensor": "/"}
_OPERATORS: dict[Callable[..., Any], str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
    operator.pow: "**",
}
_UNSAID: dict[str, Any] = {"pin_memory": (None, False), "layout": (None, torch.strided)}


def call(node: fx.Node, names: Callable[[fx.Node], str]) -> str:
    """The expression that does what ``node`` recorded.

    Args:
        node: a ``call_function`` of an exported program.
        names: what holds another node's result.

    Raises:
        GraphError: plain torch cannot do it.
    """
    target: Any = node.target
    args = [_text(argument, names) for argument in node.args]
    if target is operator.getitem:
        return f"{args[0]}[{args[1]}]"
    if target in _OPERATORS:
        return f"({args[0]} {_OPERATORS[target]} {args[1]})"
    if not isinstance(target, OpOverload):
        name = getattr(target, "__name__", str(target))
        if name.startswith("sym_") and getattr(torch, name, None) is target:
            return f"torch.{name}({', '.join(args)})"
        raise GraphError(f"{name}: a step of this kind cannot be written as plain Python")
    if target.namespace not in ("aten", "prims"):
        raise GraphError(
            f"{target.namespace}::{target._schema.name.partition('::')[2]}: is not an op of torch "
            f"itself but of a package ({target.namespace}), so it does not run without that"
        )
    name = target.__name__
    named = {
        key: _text(value, names)
        for key, value in node.kwargs.items()
        if value not in _UNSAID.get(key, ())
    }
    plain = None if named else _plain(name, node.args, args)
    if plain is not None:
        return plain
    given = ", ".join([*args, *(f"{key}={value}" for key, value in named.items())])
    base = name.partition(".")[0]
    if name in _FUNCTIONAL:
        return f"F.{base}({given})"
    if name in _TORCH:
        return f"torch.{base}({given})"
    return f"torch.ops.{target.namespace}.{name}({given})"


def _plain(name: str, given: Sequence[Any], args: Sequence[str]) -> str | None:
    """Operators, indices and methods, which read better than a call."""
    if name in _SIGNS and len(args) == 2:
        return f"{args[0]} {_SIGNS[name]} {args[1]}"
    if name == "sym_size.int":
        return f"{args[0]}.shape[{args[1]}]"
    if name == "dropout.default" and given[2] is False:
        return f"F.dropout({args[0]}, {args[1]}, self.training)"
    if name == "select.int" and given[1] >= 0:
        return f"{args[0]}[{':, ' * given[1]}{args[2]}]"
    if name == "slice.Tensor":
        return _slice(args, *given[1:])
    if name in _METHODS and isinstance(given[0], fx.Node):
        return f"{args[0]}.{name.partition('.')[0]}({', '.join(args[1:])})"
    return None


def _slice(
    args: Sequence[str], dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
) -> str | None:
    if dim < 0:
        return None
    first = "" if start in (None, 0) else args[2]
    last = "" if end is None or end == LAST else args[3]
    by = "" if step == 1 else f":{args[4]}"
    return f"{args[0]}[{':, ' * dim}{first}:{last}{by}]"


def _text(argument: Any, names: Callable[[fx.Node], str]) -> str:
    if isinstance(argument, fx.Node):
        return names(argument)
    if isinstance(argument, (list, tuple)):
        inside = ", ".join(_text(item, names) for item in argument)
        return f"({inside}{',' if len(argument) == 1 else ''})"
    if isinstance(argument, torch.device):
        return DEVICE
    if isinstance(argument, float):
        return repr(argument) if math.isfinite(argument) else f'float("{argument}")'
    if isinstance(argument, (torch.dtype, torch.layout, torch.memory_format)):
        return str(argument)
    if argument is None or isinstance(argument, (bool, int, str)):
        return repr(argument)
    raise GraphError(f"an argument of type {type(argument).__name__} cannot be written as Python")
