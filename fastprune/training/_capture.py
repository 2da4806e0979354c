"""Work on a GPU recorded once as a CUDA graph and replayed: one launch in place of hundreds."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastprune.data import InputPipeline
from fastprune.errors import TrainingError

__all__ = ["Captured", "CudaGraphs", "Graphs", "Outputs", "capture_refusal"]

Outputs = tuple[Tensor, ...]

_WARM_UPS = 3
"""Batches before the recording: they make the optimizer's buffers and choose the algorithms."""

_MOST_NUMBERS = 2**22
"""In a batch of images that is captured unasked: 1,365 of 3x32x32, or 27 of 3x224x224. Above it
kernels take longer than their launches, and a graph keeps all activations' memory for itself."""


class Graphs(Protocol):
    """What capturing needs of a device."""

    def aside(self) -> AbstractContextManager[list[str]]:
        """A context on a stream of its own; its list then has what waited for the device."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """Where ``work`` leaves its outputs whenever it is replayed, and the replay.

        Raises:
            RuntimeError: it cannot be recorded; nothing was done.
        """


class CudaGraphs:
    """Graphs of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[list[str]]:
        waits: list[str] = []
        current = torch.cuda.current_stream(self._device)
        mode = torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(current)
        with warnings.catch_warnings(record=True) as caught, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        current.wait_stream(self._stream)
        for warning in caught:
            said = str(warning.message)
            if "called a synchronizing" in said:
                waits.append(f"{warning.filename}:{warning.lineno}")
            # Entering the mode itself warns, of a prototype.
            elif "ynchronization debug mode" not in said:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )

    def record(self, work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        index = self._device.index
        generator = torch.cuda.default_generators[
            torch.cuda.current_device() if index is None else index
        ]
        before = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread alone: threads that load images may allocate and copy meanwhile.
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                outputs = work()
        except RuntimeError:
            # A recording that broke off leaves the generator in capture, and dropout fails.
            generator.graphsafe_set_state(before)
            raise
        return outputs, graph.replay


def capture_refusal(device: torch.device, pipeline: InputPipeline | None) -> str | None:
    """Why no work can be captured there, or None; of images that are not opened yet, nothing."""
    if device.type != "cuda":
        return f"the device is {device}, and CUDA graphs need a GPU"
    if pipeline is not None and pipeline.images < pipeline.batch_size:
        return f"{pipeline.images} images make no whole batch of {pipeline.batch_size}"
    return None


@dataclass(frozen=True, slots=True)
class _Recording:
    """Where a graph reads and writes, and how it is launched."""

    inputs: Outputs
    outputs: Outputs
    replay: Callable[[], None]

    def fits(self, inputs: Outputs) -> bool:
        pairs = zip(self.inputs, inputs, strict=True)
        return all(place.shape == given.shape for place, given in pairs)

    def run(self, inputs: Outputs) -> Outputs:
        for place, given in zip(self.inputs, inputs, strict=True):
            place.copy_(given)
        self.replay()
        return tuple(output.clone() for output in self.outputs)


class Captured:
    """Calls ``work`` for the first batches, then replays it on copies of its arguments.

    Batches of another shape, as the last one of an epoch, are computed by ``work`` itself, on the
    same memory. Outputs are copies.

    Args:
        work: from a batch to tensors. What it does follows from the batch and from tensors that
            stay where they are, and is all done on the device.
        images: of a whole batch.
        graphs: of the device.
        asked: whether the user wants it; then what speaks against it is an error.
        field: of a configuration that asks for it, for messages.

    Attributes:
        refusal: why ``work`` runs uncaptured; None as long as nothing speaks against capturing.
    """

    def __init__(
        self,
        work: Callable[..., Outputs],
        *,
        images: int,
        graphs: Graphs,
        asked: bool,
        field: str,
    ) -> None:
        self._work, self._images, self._graphs = work, images, graphs
        self._asked, self._field = asked, field
        self._warm_ups = _WARM_UPS
        self._recording: _Recording | None = None
        self.refusal: str | None = None

    def __call__(self, *inputs: Tensor) -> Outputs:
        """What ``work`` gives for a batch.

        Raises:
            TrainingError: it was asked for, and is not possible.
        """
        if self.refusal is not None or len(inputs[0]) != self._images:
            return self._work(*inputs)
        if self._recording is None:
            numbers = inputs[0].numel()
            if numbers > _MOST_NUMBERS and not self._asked:
                self._refuse(f"batches of {numbers:,} numbers keep the GPU busy by themselves")
                return self._work(*inputs)
            if self._warm_ups:
                return self._warm_up(inputs)
            self._recording = self._record(inputs)
        if self._recording is None or not self._recording.fits(inputs):
            return self._work(*inputs)
        return self._recording.run(inputs)

    def forget(self) -> None:
        """Records anew, after tensors that ``work`` uses were put elsewhere."""
        self._warm_ups, self._recording = _WARM_UPS, None

    def _warm_up(self, inputs: Outputs) -> Outputs:
        before = _host_draws()
        with self._graphs.aside() as waits:
            outputs = self._work(*inputs)
        self._warm_ups -= 1
        # Earlier batches may wait once, for buffers that are made.
        if self._warm_ups == 0:
            if waits:
                self._refuse(f"it waits for the GPU in every batch, at {waits[0]}")
            elif _host_draws() != before:
                self._refuse("it draws random numbers on the host, which a graph would repeat")
        return outputs

    def _record(self, inputs: Outputs) -> _Recording | None:
        places = tuple(given.clone() for given in inputs)
        try:
            outputs, replay = self._graphs.record(lambda: self._work(*places))
        # What is wrong with the work itself is raised again when it runs uncaptured.
        except RuntimeError as error:
            # The error of ending a recording hides the one that broke it.
            cause = str(error.__context__ or error)
            self._refuse(f"recording failed: {cause.strip().partition(chr(10))[0]}")
            return None
        return _Recording(places, outputs, replay)

    def _refuse(self, reason: str) -> None:
        if self._asked:
            raise TrainingError(f"{self._field}: {reason}; use auto or false")
        self.refusal = reason


def _host_draws() -> tuple[Any, ...]:
    """Where the host's random generators are."""
    _, keys, *rest = np.random.get_state()
    of_torch = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), np.asarray(keys).tobytes(), tuple(rest), of_torch
