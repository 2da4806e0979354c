"""Zeros behind the ReLUs of a network, by channel of its groups: what APoZ is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastprune.errors import FastpruneError, GraphError
from fastprune.graph import ChannelGraph
from fastprune.graph.program import Op
from fastprune.graph.rules import op_name
from fastprune.ops import relu_zero_count, zero_count

__all__ = ["ZeroCounts", "check_relus", "zero_counts"]

# What `nn.ReLU` and `nn.ReLU6` call, as what else does: functions, methods, in place or not.
_CALLS = ("relu", "relu6", "hardtanh")


@dataclass(frozen=True, slots=True)
class ZeroCounts:
    """Exact zeros of every channel behind its ReLUs, over some images.

    Integers, so that they do not depend on batches, and those of parts of the images can be
    merged.

    Attributes:
        zeros: int64 ``[graph.total]``, of each channel of the graph, on the CPU.
        elements: int64 ``[graph.total]``, of how many; 0 where a channel has no ReLU.
        images: how many were seen.
    """

    zeros: Tensor
    elements: Tensor
    images: int

    def merged(self, *others: ZeroCounts) -> ZeroCounts:
        """With those of other images, of other ranks perhaps.

        Raises:
            GraphError: they are of another network.
        """
        zeros, elements, images = self.zeros, self.elements, self.images
        for other in others:
            if other.zeros.shape != zeros.shape:
                raise GraphError(
                    f"zero counts: of another network, with {len(other.zeros)} channels; expected "
                    f"{len(zeros)}"
                )
            zeros, elements = zeros + other.zeros, elements + other.elements
            images += other.images
        return ZeroCounts(zeros, elements, images)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors that `from_state_dict` takes."""
        return {"zeros": self.zeros, "elements": self.elements, "images": self.images}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> ZeroCounts:
        """Those that gave a state."""
        return ZeroCounts(state["zeros"], state["elements"], state["images"])

    def apoz(self, graph: ChannelGraph) -> dict[str, Tensor]:
        """Average percentage of zeros by group, as a fraction: float64 ``[channels]``.

        Hu et al., *Network Trimming*, 2016, equation 1; all ReLUs of a group are one pool. Groups
        of which not every channel has a ReLU are left out.

        Raises:
            GraphError: the counts are of another network.
        """
        if len(self.zeros) != graph.total:
            raise GraphError(
                f"zero counts: of another network, with {len(self.zeros)} channels; the graph has "
                f"{graph.total}"
            )
        found = {}
        for group in graph.groups:
            part = slice(group.start, group.start + group.channels)
            if self.elements[part].all():
                found[group.name] = self.zeros[part].double() / self.elements[part]
        return found


def check_relus(graph: ChannelGraph) -> None:
    """Raises FastpruneError if there is no ReLU behind any channel group."""
    if not any(_pools(graph)):
        raise FastpruneError(
            "zeros: no channel group has a ReLU or ReLU6, and other activations make no exact "
            "zeros; expected a criterion that looks at weights, such as l2"
        )


def zero_counts(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[tuple[Tensor, Tensor]]
) -> ZeroCounts:
    """Counts the zeros of one pass over images, each channel behind every ReLU it goes through.

    Which ReLU belongs to which channels is read from the traced program: its output's channels,
    whatever module or function it is called by, in place or not, also behind a pooling, and of a
    residual sum the ReLU behind it. ReLU6 is one, and so is ``hardtanh`` from 0 on. Other
    activations are not: they make no exact zeros, or by underflow alone.

    The network is run in evaluation mode and is left as it was. Counts stay on its device until
    the end.

    Args:
        model: the network.
        graph: its channel graph.
        batches: (images ``[N, ...]``, labels ``[N]``).

    Raises:
        FastpruneError: there are no images, or there is no ReLU behind any channel group.
        GraphError: the graph is of another network, or the network calls other ReLUs for some
            images than when it was traced.
    """
    check_relus(graph)
    pools = _pools(graph)
    device = next(iter(model.parameters())).device
    counter, images = _Counter(pools), 0
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            # Compiled graphs would call nothing that is seen; loading dynamo takes seconds.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for x, _ in batches:
                placed = x.to(device)
                with counter:
                    model(placed)
                counter.end_pass()
                images += len(x)
    finally:
        for module in training:
            module.training = True
    if not images:
        raise FastpruneError("zeros: no image was given; expected at least one")
    return counter.read(graph.total, images)


@dataclass(slots=True)
class _Pool:
    """One ReLU of the program.

    Attributes:
        axes: of its output, those that channels lie along, ascending.
        sizes: of these axes.
        channels: int64 ``[product of sizes]``, the channel of the graph at each place.
        zeros: counted so far, int64 likewise, on the device.
        elements: of each place, so far.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    channels: Tensor
    zeros: Tensor | None = None
    elements: int = 0

    def rectified(self, x: Tensor) -> Tensor:
        """``relu(x)``, counted in the same pass, where channels are dimension 1."""
        self._take(x)
        if self.zeros is None:
            self.zeros = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
        return relu_zero_count(x, self.zeros)

    def _take(self, y: Tensor) -> None:
        if y.ndim <= self.axes[-1] or tuple(y.shape[a] for a in self.axes) != self.sizes:
            raise GraphError(
                f"model: the graph is of another network: a ReLU gives {list(y.shape)}, expected "
                f"{list(self.sizes)} channels along axes {list(self.axes)}"
            )
        self.elements += y.numel() // len(self.channels)

    def add(self, y: Tensor) -> None:
        """Counts the output of a ReLU."""
        self._take(y)
        if len(self.axes) == 1:
            axis = self.axes[0]
            if axis == y.ndim - 1:
                y = y.reshape(-1, y.shape[-1])  # tokens: one pass over them as they lie
            elif axis != 1:
                y = y.unsqueeze(0).transpose(1, axis + 1)
            self.zeros = zero_count(y, counter=self.zeros)
            return
        others = [d for d in range(y.ndim) if d not in self.axes]
        found = (y == 0).sum(others).flatten() if others else (y == 0).long().flatten()
        self.zeros = found if self.zeros is None else self.zeros.add_(found)


def _pools(graph: ChannelGraph) -> list[_Pool | None]:
    """Of each call that may be a ReLU, in order: where its channels are, or None where it is none
    or has no channels of a group.
    """
    found: list[_Pool | None] = []
    for op in graph.program.ops:
        if op.name not in _CALLS:
            continue
        channels = graph.maps[op.outputs[0].id] if _is_relu(op) else None
        if channels is None or bool((channels == graph.total).all()):
            found.append(None)
            continue
        axes = tuple(axis for axis, size in enumerate(channels.shape) if size > 1)
        sizes = tuple(channels.shape[axis] for axis in axes)
        found.append(_Pool(axes, sizes, torch.from_numpy(channels.reshape(-1).copy())))
    return found


def _is_relu(op: Op) -> bool:
    return op.name != "hardtanh" or float(op.arg(1, "min_val", -1.0)) == 0


class _Counter(TorchFunctionMode):
    """Counts in the ReLUs of every forward pass inside, told apart by their order."""

    def __init__(self, pools: list[_Pool | None]) -> None:
        super().__init__()
        self._pools = pools
        self._next = 0
        self._names: dict[Callable[..., Any], tuple[str, bool]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        found = self._names.get(func)
        if found is None:
            found = self._names[func] = op_name(func)
        name, in_place = found
        if name not in _CALLS:
            return func(*args, **given)
        place, self._next = self._next, self._next + 1
        pool = self._pools[place] if place < len(self._pools) else None
        if pool is None:
            return func(*args, **given)
        asked = args[1] if len(args) > 1 else given.get("inplace", False)
        if name == "relu" and pool.axes == (1,) and not in_place and not asked:
            return pool.rectified(args[0] if args else given["input"])
        result = func(*args, **given)
        pool.add(result)
        return result

    def end_pass(self) -> None:
        """Begins with the first ReLU again.

        Raises:
            GraphError: there were more or fewer than when the network was traced.
        """
        called, self._next = self._next, 0
        if called != len(self._pools):
            raise GraphError(
                f"model: the graph is of another network, or it runs other code for other images: "
                f"{called} calls of ReLU, expected {len(self._pools)}"
            )

    def read(self, total: int, images: int) -> ZeroCounts:
        """What was counted, waited for once."""
        pools = [pool for pool in self._pools if pool is not None]
        counted = torch.cat([pool.zeros for pool in pools if pool.zeros is not None]).cpu()
        channels = torch.cat([pool.channels for pool in pools])
        seen = torch.cat([torch.full_like(pool.channels, pool.elements) for pool in pools])
        zeros, elements = (torch.zeros(total + 1, dtype=torch.int64) for _ in range(2))
        zeros.index_add_(0, channels, counted)
        elements.index_add_(0, channels, seen)
        # The last is of places that can never be dropped.
        return ZeroCounts(zeros[:total], elements[:total], images)
