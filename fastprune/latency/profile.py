"""Where the time of a network goes, and why a pruned one is not faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastprune.graph.rules import METADATA, NATIVE, op_name
from fastprune.latency.alignment import Alignment

__all__ = ["REASON", "CallTime", "Profile", "hardly_faster", "profile", "reasons"]

REASON = 0.25
"""Share of the time from which on something is a reason."""

_TURNS, _WARM_UP, _QUARTER = 12, 2, 25
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class CallTime:
    """One call of a forward pass.

    Attributes:
        op: the function's name.
        layer: the layer whose weight it reads, or "".
        inputs, outputs: widths of a convolution or linear layer; 0 of other calls.
        groups: of a convolution.
        milliseconds: it took.
    """

    op: str
    layer: str
    inputs: int
    outputs: int
    groups: int
    milliseconds: float

    @property
    def computes(self) -> bool:
        """Whether arithmetic and not memory is what takes its time: a depthwise convolution reads
        every number for nine products.
        """
        return self.outputs > 0 and not self.groups > 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "milliseconds": round(self.milliseconds, 4)}


@dataclass(frozen=True, slots=True)
class Profile:
    """A forward pass, call by call.

    Attributes:
        calls: in order.
        whole: milliseconds of the pass when nobody looks at its calls.
        least: milliseconds of a call that has nothing to do.
    """

    calls: tuple[CallTime, ...]
    whole: float
    least: float

    @property
    def overhead(self) -> float:
        """Milliseconds that would pass with one channel a layer, too: of Python, and of beginning
        each call.
        """
        taken = sum(call.milliseconds for call in self.calls)
        begun = sum(min(call.milliseconds, self.least) for call in self.calls)
        return max(0.0, self.whole - taken) + begun

    def share(self, calls: Iterable[CallTime]) -> float:
        """Of the whole time, what these calls take beyond their beginning."""
        taken = sum(max(0.0, call.milliseconds - self.least) for call in calls)
        return taken / max(self.whole, 1e-9)


class _Watch(TorchFunctionMode):
    """Times every call that makes a tensor."""

    def __init__(self, names: Mapping[int, str], seconds: Callable[[], float]) -> None:
        super().__init__()
        self._names, self._seconds = names, seconds
        self.found: list[CallTime] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        name, _ = op_name(func)
        if name in METADATA or name in NATIVE:
            return func(*args, **given)
        start = self._seconds()
        result = func(*args, **given)
        took = 1e3 * (self._seconds() - start)
        if isinstance(result, Tensor):
            self.found.append(self._told(name, args, given, took))
        return result

    def _told(
        self, name: str, args: Sequence[Any], given: Mapping[str, Any], took: float
    ) -> CallTime:
        weight = given.get("weight", args[1] if len(args) > 1 else None)
        layer = self._names.get(id(weight), "") if isinstance(weight, Tensor) else ""
        if not isinstance(weight, Tensor) or not name.startswith(("conv", "linear")):
            return CallTime(name, layer, 0, 0, 1, took)
        groups = int(args[6] if len(args) > 6 else given.get("groups", 1))
        widths = weight.shape[1] * groups, weight.shape[0]
        return CallTime(name, layer, *widths, groups, took)


def profile(model: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> Profile:
    """The lower quartiles of a network's calls over some passes.

    Args:
        model: in evaluation mode, on the device, in the mode it is to be measured in.
        inputs: of its forward pass.
        device: of both.
    """

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return time.perf_counter()
        return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()

    names = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
    nothing = torch.zeros(1, device=device, dtype=inputs[0].dtype)
    passes: list[list[CallTime]] = []
    wholes, leasts = [], []
    with torch.inference_mode():
        for turn in range(_WARM_UP + _TURNS):
            start = now()
            model(*inputs)
            whole = 1e3 * (now() - start)
            watch = _Watch(names, now)
            with watch:
                model(*inputs)
                nothing.relu()
            *calls, least = watch.found
            if turn >= _WARM_UP:
                passes.append(calls)
                wholes.append(whole)
                leasts.append(least.milliseconds)
    taken = np.percentile([[c.milliseconds for c in row] for row in passes], _QUARTER, axis=0)
    calls = [
        CallTime(c.op, c.layer, c.inputs, c.outputs, c.groups, float(took))
        for c, took in zip(passes[0], taken, strict=True)
    ]
    whole, least_ms = (float(np.percentile(found, _QUARTER)) for found in (wholes, leasts))
    return Profile(tuple(calls), whole, least_ms)


def hardly_faster(unpruned_ms: float, pruned_ms: float, kept_macs: float) -> bool:
    """Whether pruning saved less than a quarter of the time that the MACs promise."""
    return 1 - pruned_ms / unpruned_ms < REASON * (1 - kept_macs) or pruned_ms >= unpruned_ms


def reasons(
    found: Profile, unpruned: Mapping[str, tuple[int, int]], alignment: Alignment
) -> list[str]:
    """Why a pruned network takes as long as it does, and what to set; the weightiest first.

    Args:
        found: of the pruned network.
        unpruned: input and output widths of the unpruned network's convolutions and linear layers,
            by name.
        alignment: what the device likes.
    """
    told = [
        _overhead(found),
        _memory(found),
        _unaligned(found, alignment),
        _whole(found, unpruned),
    ]
    weighty = sorted((row for row in told if row[0] >= REASON), key=lambda row: -row[0])
    if weighty:
        return [text for _, text in weighty]
    return [f"no one reason takes a quarter of the time; it goes to {_by_op(found, found.calls)}"]


def _overhead(found: Profile) -> tuple[float, str]:
    share = found.overhead / max(found.whole, 1e-9)
    return share, (
        f"too small for the overhead: {share:.0%} of its {found.whole:.3g} ms go to Python and to "
        f"beginning its {len(found.calls)} calls, whatever their widths; larger batches "
        "(latency.batch_size) or torch.compile spread that, fewer layers mend it"
    )


def _memory(found: Profile) -> tuple[float, str]:
    calls = [call for call in found.calls if not call.computes]
    share = found.share(calls)
    return share, (
        f"{share:.0%} of the time goes to calls that move memory and compute little: "
        f"{_by_op(found, calls)}; they follow the widths of the feature maps alone, not the MACs; "
        "a budget in latency (prune.budget.latency_ms) drops channels where that saves time, "
        "torch.compile merges such calls"
    )


def _unaligned(found: Profile, alignment: Alignment) -> tuple[float, str]:
    multiple = alignment.liked
    calls = [
        call
        for call in found.calls
        if call.computes and multiple > 1 and (call.inputs % multiple or call.outputs % multiple)
    ]
    share = found.share(calls)
    worst = sorted(calls, key=lambda call: -call.milliseconds)[:_SHOWN]
    named = ", ".join(f"{call.layer} {call.inputs} to {call.outputs}" for call in worst)
    return share, (
        f"{share:.0%} of the time goes to layers whose widths are no multiples of {multiple}, in "
        f"which this device works: {named}; set prune.round_to=auto "
        f"(here {alignment.round_to}), or a budget in latency, which knows the steps"
    )


def _whole(found: Profile, unpruned: Mapping[str, tuple[int, int]]) -> tuple[float, str]:
    calls = [
        call
        for call in found.calls
        if call.computes and unpruned.get(call.layer) == (call.inputs, call.outputs)
    ]
    share = found.share(calls)
    worst = sorted(calls, key=lambda call: -call.milliseconds)[:_SHOWN]
    named = ", ".join(call.layer for call in worst)
    return share, (
        f"{share:.0%} of the time goes to {len(calls)} layers of which nothing was dropped, such "
        f"as {named}; prune.ranking=layer, prune.ratios or a budget in latency may reach them"
    )


def _by_op(found: Profile, calls: Iterable[CallTime]) -> str:
    """The ops that take most, with their shares."""
    by_op: dict[str, list[CallTime]] = {}
    for call in calls:
        name = f"depthwise {call.op}" if call.groups > 1 else call.op
        by_op.setdefault(name, []).append(call)
    ordered = sorted(by_op, key=lambda op: -found.share(by_op[op]))[:_SHOWN]
    return ", ".join(f"{op} {found.share(by_op[op]):.0%}" for op in ordered)
