"""The layers of torch that a stand-alone network is made of, as the calls that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Layer", "layer_of", "layer_that_runs"]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the network that one line makes anew.

    Attributes:
        name: its place in the network.
        module: itself.
        made_by: the expression that makes one like it.
    """

    name: str
    module: nn.Module
    made_by: str


def layer_of(name: str, module: nn.Module) -> Layer | None:
    """A module as a layer; None where it is not exactly one of torch's that are known here.

    What is made has tensors of the same names, shapes and dtypes: hooks and parametrizations
    change them, and such a module is none.
    """
    kind = type(module)
    if kind not in _MADE or getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    given = _MADE[kind](module)
    held = module.state_dict()
    dtype = next((t.dtype for t in held.values() if t.is_floating_point()), torch.float32)
    arguments = {key: value for key, value in given.items() if not key.startswith("_")}
    like = kind(*given["_"], **arguments, dtype=dtype, device="meta").state_dict()
    if {key: _facts(t) for key, t in like.items()} != {key: _facts(t) for key, t in held.items()}:
        return None
    if dtype is not torch.float32:
        arguments["dtype"] = dtype
    text = [*map(repr, given["_"]), *(f"{key}={value!r}" for key, value in arguments.items())]
    return Layer(name, module, f"nn.{kind.__name__}({', '.join(text)})")


def layer_that_runs(
    node: fx.Node, state: Mapping[fx.Node, str], layers: Mapping[str, Layer]
) -> tuple[Layer, fx.Node] | None:
    """The layer whose call is all that a recorded op does, and what it reads; None if none is.

    Args:
        node: an op of an exported program.
        state: names of the parameters and buffers among the program's inputs.
        layers: by name.
    """
    expected = _RUN.get(getattr(node.target, "__name__", ""))
    if expected is None:
        return None
    schema: Any = node.target._schema  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given |= dict(zip(given, node.args, strict=False)) | dict(node.kwargs)
    read = given.pop("input")
    tensor = next((given[key] for key in _TENSORS if isinstance(given.get(key), fx.Node)), None)
    layer = layers.get(state.get(tensor, "").rpartition(".")[0])  # type: ignore[arg-type]
    if layer is None or not isinstance(read, fx.Node):
        return None
    wanted = expected(layer.module)
    for key, value in given.items():
        if isinstance(value, fx.Node):
            if state.get(value) != f"{layer.name}.{key}":
                return None
        elif key in wanted:
            if _plain(value) != _plain(wanted[key]):
                return None
        elif key in _TENSORS and getattr(layer.module, key) is not None:
            return None
    return layer, read


_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype


def _plain(value: Any) -> Any:
    """Lists and tuples alike."""
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _short(sizes: Any) -> Any:
    """One number for sizes that are all equal, as layers are usually written."""
    return sizes[0] if isinstance(sizes, tuple) and len(set(sizes)) == 1 else sizes


def _convolution(module: Any) -> dict[str, Any]:
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given = {key: _short(getattr(module, key)) for key in usual}
    changed = {key: value for key, value in given.items() if value != usual[key]}
    bias = {} if module.bias is not None else {"bias": False}
    first = (module.in_channels, module.out_channels, _short(module.kernel_size))
    return {"_": first, **changed, **bias}


def _linear(module: Any) -> dict[str, Any]:
    bias = {} if module.bias is not None else {"bias": False}
    return {"_": (module.in_features, module.out_features), **bias}


def _batch_norm(module: Any) -> dict[str, Any]:
    usual = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}
    changed = {key: getattr(module, key) for key in usual if getattr(module, key) != usual[key]}
    return {"_": (module.num_features,), **changed}


def _layer_norm(module: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"_": (_short(module.normalized_shape),)}
    if len(module.normalized_shape) > 1:
        given["_"] = (module.normalized_shape,)
    if module.eps != 1e-5:
        given["eps"] = module.eps
    if not module.elementwise_affine:
        given["elementwise_affine"] = False
    elif module.bias is None:
        given["bias"] = False
    return given


def _group_norm(module: Any) -> dict[str, Any]:
    usual = {"eps": 1e-5, "affine": True}
    changed = {key: getattr(module, key) for key in usual if getattr(module, key) != usual[key]}
    return {"_": (module.num_groups, module.num_channels), **changed}


_MADE: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}


def _sizes(module: Any) -> dict[str, Any]:
    keys = ("stride", "padding", "dilation", "groups")
    return {key: getattr(module, key) for key in keys}


def _statistics(module: Any) -> dict[str, Any]:
    return {"training": False, "eps": module.eps}


# What a layer's own call hands to the op besides its tensors.
_RUN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "conv1d.default": _sizes,
    "conv2d.default": _sizes,
    "conv3d.default": _sizes,
    "linear.default": lambda module: {},
    "batch_norm.default": _statistics,
    "layer_norm.default": lambda module: {
        "normalized_shape": module.normalized_shape,
        "eps": module.eps,
    },
    "group_norm.default": lambda module: {"num_groups": module.num_groups, "eps": module.eps},
}
