"""The table of rules and the names of torch's functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastprune.graph.channels import ChannelTracker
from fastprune.graph.program import Op

__all__ = [
    "CREATION",
    "INPLACE_POSITION",
    "METADATA",
    "NATIVE",
    "RULES",
    "UNIFORM",
    "Rule",
    "op_name",
    "rule",
]

Shape = tuple[int, ...]
ShapeRule = Callable[[Op], "Shape | list[Shape] | None"]
ChannelRule = Callable[[ChannelTracker, Op], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of an op.

    Attributes:
        channels: notes in the tracker what the op does to its inputs' channels and gives its
            outputs their maps.
        shape: the output's shape, a list of them for several outputs, or None to ask the meta
            device.
    """

    channels: ChannelRule
    shape: ShapeRule | None


RULES: dict[str, Rule] = {}

# Run on the stand-ins themselves: views of a zero-stride tensor cost nothing.
NATIVE: set[str] = set()

# Questions about a tensor that make no tensor.
METADATA = frozenset(
    [
        "shape",
        "dtype",
        "device",
        "ndim",
        "is_cuda",
        "requires_grad",
        "layout",
        "is_leaf",
        "grad",
        "grad_fn",
        "names",
        "dim",
        "size",
        "numel",
        "nelement",
        "is_contiguous",
        "stride",
        "storage_offset",
        "is_floating_point",
        "is_complex",
        "is_signed",
        "element_size",
        "data_ptr",
        "get_device",
        "itemsize",
        "nbytes",
        "is_sparse",
        "is_sparse_csr",
        "is_quantized",
        "is_nested",
        "is_mkldnn",
        "is_meta",
        "is_xpu",
        "is_mps",
        "_version",
        "is_cpu",
        "__format__",
        "__repr__",
        "__str__",
        "__hash__",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__len__",
        "__contains__",
        "item",
        "tolist",
        "is_inference",
        "is_tensor",
        "is_nonzero",
        "is_same_size",
        "is_conj",
        "is_neg",
        "is_pinned",
        "untyped_storage",
        "storage",
        "is_shared",
        "_is_view",
        "retains_grad",
        "output_nr",
        "__class__",
        "__reduce_ex__",
        "__deepcopy__",
        "volatile",
        "numpy",
        "_assert",
        "_assert_async",
        "is_mtia",
        "is_maia",
        "is_vulkan",
        "is_ipu",
        "is_xla",
        "is_hpu",
        "name",
    ]
)

# Make a tensor out of numbers; traced where a number is a size that the forward pass read.
CREATION = frozenset(
    [
        "arange",
        "linspace",
        "eye",
        "rand",
        "randn",
        "randint",
        "randperm",
        "tensor",
        "new_tensor",
        "as_tensor",
    ]
)
UNIFORM = frozenset(("zeros", "ones", "full", "empty"))

# Where a function takes ``inplace`` by position.
INPLACE_POSITION = {
    "relu": 1,
    "relu6": 1,
    "selu": 1,
    "silu": 1,
    "mish": 1,
    "hardswish": 1,
    "hardsigmoid": 1,
    "leaky_relu": 2,
    "elu": 2,
    "celu": 2,
    "hardtanh": 3,
    "threshold": 3,
    "rrelu": 4,
    "dropout": 3,
    "dropout1d": 3,
    "dropout2d": 3,
    "dropout3d": 3,
    "alpha_dropout": 3,
    "feature_alpha_dropout": 3,
}

_OPERATORS = {
    "__add__": "add",
    "__radd__": "add",
    "__sub__": "sub",
    "__rsub__": "rsub",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__truediv__": "div",
    "__rtruediv__": "rdiv",
    "__rdiv__": "rdiv",
    "__div__": "div",
    "__pow__": "pow",
    "__rpow__": "rpow",
    "__neg__": "neg",
    "__abs__": "abs",
    "__pos__": "positive",
    "__invert__": "bitwise_not",
    "__matmul__": "matmul",
    "__rmatmul__": "rmatmul",
    "__floordiv__": "floor_divide",
    "__rfloordiv__": "rfloor_divide",
    "__mod__": "remainder",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__eq__": "eq",
    "__ne__": "ne",
    "__lt__": "lt",
    "__le__": "le",
    "__gt__": "gt",
    "__ge__": "ge",
    "__getitem__": "getitem",
    "__setitem__": "setitem",
}

_INPLACE_OPERATORS = {
    "__iadd__": "add",
    "__isub__": "sub",
    "__imul__": "mul",
    "__itruediv__": "div",
    "__idiv__": "div",
    "__ipow__": "pow",
}


def op_name(func: Callable[..., Any]) -> tuple[str, bool]:
    """The op a torch function stands for, and whether it works in place (``add_``)."""
    name: str = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        # A property of Tensor: the descriptor behind the bound getter knows which.
        return getattr(getattr(func, "__self__", None), "__name__", name), False
    if name in _OPERATORS:
        return _OPERATORS[name], False
    if name in _INPLACE_OPERATORS:
        return _INPLACE_OPERATORS[name], True
    if name.startswith("__"):
        return name, False
    if name.endswith("_") and not name.startswith("_"):
        return name[:-1], True
    return name, False


def rule(
    *names: str, shape: ShapeRule | None = None, native: bool = False
) -> Callable[[ChannelRule], ChannelRule]:
    """Decorator: the channel rule of the ops called ``names``.

    Args:
        names: op names, without in-place underscores.
        shape: gives the output's shape without running the op.
        native: the op is a view, run it on the stand-ins.
    """

    def add(channels: ChannelRule) -> ChannelRule:
        for name in names:
            RULES[name] = Rule(channels, shape)
            if native:
                NATIVE.add(name)
        return channels

    return add
