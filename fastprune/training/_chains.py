"""A batch norm with what stands around it, as one step: convolution, norm, sum, ReLU.

Results that nothing else reads are overwritten instead of copied, which changes no bit. Where
arithmetic is bf16 on a CPU, a norm whose statistics are known goes into the weights before it, and
oneDNN adds, sums and clips what it has just convolved: one pass over memory instead of four, and
one rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprune.training._union import Arguments, Node, Ref, Union, Weight

__all__ = [
    "Bounds",
    "Chain",
    "Convolution",
    "Folded",
    "Norm",
    "added",
    "can_fold",
    "chained",
    "clipped",
    "folded",
]

Bounds = tuple[float, float | None]
"""Least and largest result; None is without."""


class Convolution(NamedTuple):
    """A 2d convolution's step and arguments."""

    node: int
    x: Ref
    weight: Weight
    bias: Weight | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class Norm(NamedTuple):
    """Arguments of ``F.batch_norm`` that count in evaluation mode; tensors, or what stands for
    them.
    """

    x: Any
    mean: Any
    variance: Any
    weight: Any
    bias: Any
    eps: float


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps that are run as one, at the place of the last.

    Attributes:
        node: the batch norm's step.
        norm: its arguments.
        convolution: the step before it, where they may be run together.
        other: what is added to its result.
        bounds: what the result is clipped to; None leaves it as it is.
    """

    node: int
    norm: Norm
    convolution: Convolution | None
    other: Ref | None
    bounds: Bounds | None


def chained(
    union: Union, arguments: Sequence[Arguments], *, convolutions: bool
) -> tuple[Union, dict[int, Chain]]:
    """Batch norms made one step with their neighbours.

    Args:
        union: the steps.
        arguments: of each step.
        convolutions: whether a chain begins with the convolution before its norm.

    Returns:
        The same candidates with fewer steps, whose numbers stay, and the chains by their number.
    """
    readers: dict[int, list[int]] = {}
    for number, node in enumerate(union.nodes):
        for ref in node.inputs:
            readers.setdefault(ref.node, []).append(number)
    ends = {output.node for output in union.outputs}

    def only_reader(node: int) -> int | None:
        """The one step that reads a result that is nobody's output."""
        there = readers.get(node, ())
        return there[0] if len(there) == 1 and node not in ends else None

    chains: dict[int, Chain] = {}
    inside: set[int] = set()
    # Of two norms that are added up, the later one takes the sum: the other is there by then.
    for norm in reversed(range(len(union.nodes))):
        if union.nodes[norm].name != "batch_norm":
            continue
        members, other, bounds, convolution = [norm], None, None, None
        given = _norm(*arguments[norm][0], **arguments[norm][1])
        after = only_reader(norm)
        if after is not None and after not in inside:
            other = _summand(union.nodes[after], arguments[after], norm)
            if other is not None:
                members.append(after)
                after = only_reader(after)
        if after is not None and after not in inside:
            bounds = _bounds(union.nodes[after], arguments[after])
            if bounds is not None:
                members.append(after)
        before = given.x.node if isinstance(given.x, Ref) else -1
        if convolutions and only_reader(before) == norm:
            convolution = _convolution(before, union.nodes[before], arguments[before])
            if convolution is not None:
                members.append(before)
        chains[max(members)] = Chain(norm, given, convolution, other, bounds)
        inside.update(members)
    return _joined(union, chains, inside), chains


def _joined(union: Union, chains: Mapping[int, Chain], inside: set[int]) -> Union:
    nodes = list(union.nodes)
    for last, chain in chains.items():
        inputs = [*union.nodes[chain.node].inputs, *([chain.other] if chain.other else [])]
        if (before := chain.convolution) is not None:
            inputs += union.nodes[before.node].inputs
            inputs = [ref for ref in inputs if ref.node != before.node]
        nodes[last] = replace(nodes[last], inputs=tuple(inputs))
    gone = inside.difference(chains)
    paths = tuple(tuple(n for n in path if n not in gone) for path in union.paths)
    return replace(union, nodes=tuple(nodes), paths=paths)


def _summand(node: Node, arguments: Arguments, norm: int) -> Ref | None:
    """What a step adds to the norm's result, if that is all it does."""
    args, kwargs = arguments
    if node.name != "add" or kwargs or len(args) != 2:
        return None
    refs = [ref for ref in args if isinstance(ref, Ref)]
    others = [ref for ref in refs if ref.node != norm]
    return others[0] if len(refs) == 2 and len(others) == 1 else None


def _bounds(node: Node, arguments: Arguments) -> Bounds | None:
    if node.name != "hardtanh":
        return {"relu": (0.0, None), "relu6": (0.0, 6.0)}.get(node.name)
    args, kwargs = arguments
    given = {**dict(zip(("min_val", "max_val"), args[1:], strict=False)), **kwargs}
    return float(given.get("min_val", -1.0)), float(given.get("max_val", 1.0))


def _norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Norm:
    return Norm(input, running_mean, running_var, weight, bias, eps)


def _convolution(number: int, node: Node, arguments: Arguments) -> Convolution | None:
    if node.name != "conv2d":
        return None
    args, kwargs = arguments
    found = Convolution(number, *_convolution_arguments(*args, **kwargs))
    refs = isinstance(found.x, Ref) and isinstance(found.weight, Weight)
    if not refs or not isinstance(found.bias, Weight | None) or isinstance(found.padding, str):
        return None
    return found


def _convolution_arguments(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, _two(stride), _two(padding), _two(dilation), groups


def _two(given: Any) -> Any:
    return (given, given) if isinstance(given, int) else given


def added(x: Tensor, other: Tensor) -> Tensor:
    """The sum, in place of ``x`` where it fits."""
    if x.dtype == other.dtype and x.shape == other.shape:
        return x.add_(other)
    return x + other


def clipped(x: Tensor, bounds: Bounds) -> Tensor:
    """``x``, overwritten, within bounds."""
    low, high = bounds
    return torch.relu_(x) if high is None else F.hardtanh_(x, low, high)


class Folded(NamedTuple):
    """A convolution with the norm after it in its weights."""

    weight: Tensor
    bias: Tensor
    of: Convolution

    def __call__(self, x: Tensor, other: Tensor | None, bounds: Bounds | None) -> Tensor:
        """The chain's result."""
        if x.dtype is not self.weight.dtype:
            x = x.to(self.weight.dtype)
        of = self.of
        given = (self.weight, self.bias, of.padding, of.stride, of.dilation, of.groups)
        # oneDNN's two ops take different words, and the second knows no other clip than ReLU.
        convolve = torch.ops.mkldnn._convolution_pointwise
        relu = bounds is not None and bounds[1] is None
        y: Tensor
        if other is None:
            if relu:
                return convolve.default(x, *given, "relu", [], "")  # type: ignore[no-any-return]
            word, limits = ("none", []) if bounds is None else ("hardtanh", list(bounds))
            return convolve.default(x, *given, word, limits, "")  # type: ignore[no-any-return]
        kernel = self.weight.shape
        size = _size(x.shape, kernel, of.stride, of.padding, of.dilation)
        if other.dtype is x.dtype and other.shape == size:
            y = convolve.binary(x, other, *given, "add", 1.0, "relu" if relu else None, [], None)
            return y if relu or bounds is None else clipped(y, bounds)
        y = added(convolve.default(x, *given, "none", [], ""), other)
        return y if bounds is None else clipped(y, bounds)


@lru_cache(maxsize=4096)
def _size(
    x: torch.Size,
    kernel: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Size:
    """Of a convolution's result; remembered, as it is asked for at every step."""
    ends = zip(x[2:], kernel[2:], stride, padding, dilation, strict=True)
    sizes = [(n + 2 * pad - apart * (k - 1) - 1) // by + 1 for n, k, by, pad, apart in ends]
    return torch.Size([x[0], kernel[0], *sizes])


def folded(
    union: Union, convolution: Convolution, norm: Norm, dtype: torch.dtype
) -> Folded | None:
    """A convolution's weights times what the norm after it does, in ``dtype``; None without
    statistics.

    Args:
        norm: ``x`` is not looked at.
    """
    if norm.mean is None or norm.variance is None:
        return None
    weight = union.weights[convolution.weight.place].float()
    scale = (norm.variance.float() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.float()
    shift = -norm.mean.float() * scale
    if convolution.bias is not None:
        shift = shift + union.weights[convolution.bias.place].float() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.float()
    scaled = (weight * scale.view(-1, 1, 1, 1)).to(dtype, memory_format=torch.channels_last)
    return Folded(scaled, shift.to(dtype), convolution)


def can_fold(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether norms may go into weights: not in float32, which is to stay exact to the bit."""
    onednn = torch.ops.mkldnn
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(onednn, "_convolution_pointwise")
        # False on processors that would only emulate it.
        and bool(onednn._is_mkldnn_bf16_supported())
    )
