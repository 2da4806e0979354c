"""Taking times on a device: whole networks and single calls, in turns.

The speed of a shared machine changes from second to second. So everything that is compared runs in
turns, and the quarter of the times below which the least disturbed are is what counts, of layers
and of networks alike: sums of minima over single layers are times that no whole network reaches.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastprune.graph.program import Op, Value
from fastprune.latency.calls import Call
from fastprune.latency.options import LatencyOptions, Mode
from fastprune.latency.table import Points

__all__ = ["Clock", "DeviceClock", "Setting", "device_name", "seconds_of", "setting_of"]

QUARTER = 25
"""Percentile of times that counts. Of minima the predictions for ResNet-56 beside busy neighbours
were off by 12 %, of lower quartiles by 7, of medians by 9."""

_WARM_UP, _TURNS, _FEWEST, _LONGEST = 2, 24, 5, 4.0
"""Of whole networks: turns before, turns, and the fewest of them after so many seconds."""
_PLACES = 4
"""Of memory that the tensors of single calls take turns in."""
_KIND_SECONDS, _MOST, _LEAST = 1.0, 16, 3
"""Of single calls: seconds for all points of a kind, and the most and fewest turns in them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """All that the time of a layer depends on but the layer.

    Attributes:
        device: its name.
        threads: of the CPU.
        torch: its version, since kernels change with it.
        batch_size, mode: as in `LatencyOptions`.
    """

    device: str
    threads: int
    torch: str
    batch_size: int
    mode: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Clock(Protocol):
    """What measures; tests put another in its place."""

    @property
    def setting(self) -> Setting:
        """What its times are of."""

    def layer(self, call: Call, points: Points) -> list[float]:
        """Milliseconds of a call at each pair of widths, undisturbed."""

    def networks(self, models: Sequence[nn.Module], example: Sequence[Tensor]) -> list[float]:
        """Milliseconds of each network for a batch like the traced example, taken in turns."""


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, platform.processor() or platform.machine())
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def setting_of(options: LatencyOptions, device: torch.device) -> Setting:
    """The setting of this process."""
    return Setting(
        device_name(device),
        torch.get_num_threads(),
        torch.__version__,
        options.batch_size,
        options.mode,
    )


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: by events on a GPU, which works on after a call returned.

    On one CPU thread they are that thread's CPU seconds: on a quiet machine the same, and on a
    shared one they leave out the time in which others had the processor.
    """
    if device.type == "cuda":
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = now()
    call()
    return now() - start


class DeviceClock:
    """Measures on a device, in this process."""

    def __init__(self, options: LatencyOptions, device: torch.device) -> None:
        self._options = options
        self._device = device
        self._mode = Mode(options.mode)

    @cached_property
    def setting(self) -> Setting:
        """Of this process, when first asked for."""
        return setting_of(self._options, self._device)

    def layer(self, call: Call, points: Points) -> list[float]:
        with _inference():
            runs = list(_runs(call, points, self._mode, self._device))
            # The first turn makes what kernels keep for a shape.
            begun = time.perf_counter()
            self._turn(runs)
            often = int(_KIND_SECONDS / max(time.perf_counter() - begun, 1e-9))
            turns = [self._turn(runs) for _ in range(min(_MOST, max(_LEAST, often)))]
        return [float(time) for time in np.percentile(turns, QUARTER, axis=0)]

    def _turn(self, runs: Sequence[Callable[[], object]]) -> list[float]:
        return [1e3 * seconds_of(run, self._device) for run in runs]

    def networks(self, models: Sequence[nn.Module], example: Sequence[Tensor]) -> list[float]:
        prepared = [self._mode.prepare(copy.deepcopy(model)).to(self._device) for model in models]
        inputs = [self._batch(given) for given in example]
        times: list[list[float]] = [[] for _ in models]
        with _inference():
            begun = time.perf_counter()
            for turn in range(_WARM_UP + _TURNS):
                for network, found in zip(prepared, times, strict=True):
                    took = seconds_of(lambda network=network: network(*inputs), self._device)  # type: ignore[misc]
                    if turn >= _WARM_UP:
                        found.append(1e3 * took)
                if len(times[0]) >= _FEWEST and time.perf_counter() - begun > _LONGEST:
                    break
        return [float(np.percentile(found, QUARTER)) for found in times]

    def _batch(self, given: Tensor) -> Tensor:
        """As many random images as are asked for; what is no image stays as it is."""
        if not given.is_floating_point():
            return given.to(self._device).contiguous()
        shape = (self._options.batch_size, *given.shape[1:])
        random = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return self._mode.images(random.to(self._device))


@contextmanager
def _inference() -> Iterator[None]:
    """No autograd, and no filling of fresh memory, which tests ask of torch and users do not."""
    memory: Any = torch.utils.deterministic
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    try:
        with torch.inference_mode():
            yield
    finally:
        memory.fill_uninitialized_memory = filled


def _runs(
    call: Call, points: Points, mode: Mode, device: torch.device
) -> Iterator[Callable[[], object]]:
    """The call at each pair of widths, on tensors that take turns in a few places of memory, since
    in a network, too, what a call reads was written by the one before, and its result goes where
    another was.
    """
    memory = [
        [
            # Positive, since batch norm takes roots; far from denormal numbers, which are slow.
            torch.rand(math.prod(shape), device=device).add_(0.5).to(mode.dtype)
            for shape in call.kind.shapes
        ]
        for _ in range(_PLACES)
    ]
    for turn, (inputs, outputs) in enumerate(points):
        values = {
            value.id: _shaped(flat, shape, mode)
            for value, flat, shape in zip(
                call.op.inputs,
                memory[turn % _PLACES],
                call.kind.sizes(inputs, outputs),
                strict=True,
            )
        }
        yield _run(call.op, values, _groups(call, outputs))


def _shaped(flat: Tensor, shape: tuple[int, ...], mode: Mode) -> Tensor:
    """The front of ``flat`` in a shape and the mode's memory format."""
    front = flat[: math.prod(shape)]
    if len(shape) == 4 and mode.memory_format is torch.channels_last:
        batch, channels, height, width = shape
        return front.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return front.view(shape)


def _groups(call: Call, outputs: int) -> int | None:
    """How many groups a grouped convolution has left."""
    if call.op.name.startswith("conv") and int(call.op.arg(6, "groups", 1)) > 1:
        return max(1, outputs // call.kind.unit)
    return None


def _run(op: Op, values: Mapping[int, Tensor], groups: int | None) -> Callable[[], object]:
    def given(item: Any) -> Any:
        if isinstance(item, Value):
            return values[item.id]
        if isinstance(item, (list, tuple)):
            return type(item)([given(part) for part in item])
        return item

    args = [given(item) for item in op.args]
    kwargs = {name: given(item) for name, item in op.kwargs.items()}
    if groups is not None:
        if len(args) > 6:
            args[6] = groups
        else:
            kwargs["groups"] = groups
    return lambda: op.func(*args, **kwargs)
