"""Split inference: every expert in a process of its own, the fusion head in this one."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

import torch
from torch import nn

from fastprune.errors import FastpruneError, TrainingError
from fastprune.nn import FusionHead
from fastprune.training._crew import without_interrupts
from fastprune.training.experts import Expert

__all__ = ["SplitNetwork", "SplitPart", "SplitTimes"]

_ENDING = 5.0
"""Seconds that a process is given to end by itself."""


@dataclass(frozen=True, slots=True)
class SplitPart:
    """An expert that is to run in a process of its own.

    Attributes:
        name: for messages.
        features: how many it gives.
        device: where it runs: ``cpu`` or ``cuda:N``.
        open: makes it, in its process; it is pickled.
    """

    name: str
    features: int
    device: str
    open: Callable[[], Expert]


@dataclass(frozen=True, slots=True)
class SplitTimes:
    """Seconds that a batch took.

    Attributes:
        experts: of each, in its own process, from the images in shared memory to the features
            there.
        head: from the features to the logits.
        whole: from the images here to the logits here.
    """

    experts: tuple[float, ...]
    head: float
    whole: float


class SplitNetwork(nn.Module):
    """Images to logits as `FusedNetwork` computes them, the experts each in a process.

    Images and features lie in shared memory, and only how many there are goes through the pipes:
    256 CIFAR images are there and their features back in 1 ms, where sending them takes 8. It is
    a context; the processes end with it, and with this process, however it ends.

    Args:
        parts: the experts, in the order of the head's inputs.
        head: on the device on which it is to run.
        input_shape: ``(C, H, W)`` of an image.
        batch_size: most images of a call.
        threads: CPU threads of each process.

    Raises:
        FastpruneError: an expert cannot be opened.
        TrainingError: a process was killed.
        ValueError: the head reads another number of features than the experts give.
    """

    def __init__(
        self,
        parts: Sequence[SplitPart],
        head: FusionHead,
        *,
        input_shape: Sequence[int],
        batch_size: int,
        threads: int = 1,
    ) -> None:
        super().__init__()
        given = sum(part.features for part in parts)
        if given != head.features:
            raise ValueError(f"head: expected {given} features, got one of {head.features}")
        self.head = head
        self._parts = tuple(parts)
        self._images = _shared(batch_size, *input_shape)
        self._features = [_shared(batch_size, part.features) for part in parts]
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        # Forked processes cannot use CUDA, nor torch's threads.
        context = multiprocessing.get_context("spawn")
        try:
            for part, features in zip(self._parts, self._features, strict=True):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(part, self._images, features, threads, theirs),
                    name=f"fastprune {part.name}",
                    daemon=True,
                )
                with without_interrupts():
                    process.start()
                # The end of the process is then the end of the pipe.
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
            for number in range(len(self._parts)):
                self._answer(number)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SplitNetwork:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; calling it again does nothing."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_ENDING)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, classes]``, where the head is, of images ``[N, C, H, W]``.

        Raises:
            TrainingError: a process was killed.
            ValueError: there are more images than ``batch_size``.
        """
        logits, _ = self.timed(x)
        return logits

    def timed(self, x: torch.Tensor) -> tuple[torch.Tensor, SplitTimes]:
        """The same, and what took how long."""
        begun = time.perf_counter()
        self._show(x)
        for number in range(len(self._parts)):
            self._ask(number, len(x))
        seconds = tuple(self._answer(number) for number in range(len(self._parts)))
        gathered = time.perf_counter()
        where = next(self.head.parameters()).device
        seen = torch.cat([features[: len(x)] for features in self._features], 1).to(where)
        logits: torch.Tensor = self.head(seen)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        ended = time.perf_counter()
        return logits, SplitTimes(seconds, ended - gathered, ended - begun)

    def expert_seconds(self, number: int, x: torch.Tensor) -> float:
        """Seconds that one expert takes for images while the others rest."""
        self._show(x)
        self._ask(number, len(x))
        return self._answer(number)

    def _show(self, x: torch.Tensor) -> None:
        if len(x) > len(self._images):
            raise ValueError(f"x: expected at most {len(self._images)} images, got {len(x)}")
        self._images[: len(x)].copy_(x)

    def _ask(self, number: int, images: int) -> None:
        try:
            self._pipes[number].send(images)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended(number) from None

    def _answer(self, number: int) -> float:
        """What a process says: seconds, or the error that kept it from opening its expert."""
        try:
            said: float | FastpruneError = self._pipes[number].recv()
        except (EOFError, ConnectionResetError):
            raise self._ended(number) from None
        if isinstance(said, FastpruneError):
            raise said
        return said

    def _ended(self, number: int) -> TrainingError:
        part, process = self._parts[number], self._processes[number]
        process.join(_ENDING)
        return TrainingError(
            f"expert {part.name} on {part.device}: its process ended "
            f"(exit code {process.exitcode}); memory may be too small for so many experts"
        )


def _shared(*shape: int) -> torch.Tensor:
    """Zeros that other processes see; nothing is left of them when all have ended."""
    shared: torch.Tensor = torch.zeros(shape).share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _serve(
    part: SplitPart, images: torch.Tensor, features: torch.Tensor, threads: int, pipe: Connection
) -> None:
    """A process's work: opens its expert, and answers until nobody asks any more."""
    torch.set_num_threads(threads)
    try:
        expert = part.open().to(part.device)
    except FastpruneError as error:
        pipe.send(error)
        return
    try:
        pipe.send(0.0)
        while True:
            count = pipe.recv()
            begun = time.perf_counter()
            with torch.no_grad():
                # Copying to shared memory waits for the device.
                features[:count].copy_(expert(images[:count].to(part.device)))
            pipe.send(time.perf_counter() - begun)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The other end was closed, or its process is no more.
        return
