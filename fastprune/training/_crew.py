"""Several candidates at a time, each in a process of its own on the same device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

import torch

from fastprune.errors import TrainingError
from fastprune.training.evaluator import Outcome, Request, TrainedEvaluator

__all__ = ["Crew", "without_interrupts"]

_evaluator: TrainedEvaluator | None = None


class Crew:
    """Processes that train candidates; CPU threads are shared out among them.

    An outcome is the same as one evaluator's alone with as many threads; on a CPU, other numbers
    of threads round differently.

    Args:
        make: makes a process's evaluator; it is pickled.
        size: how many processes.
        say: told where memory is too small for so many.
    """

    def __init__(
        self,
        make: Callable[[], TrainedEvaluator],
        size: int,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._most, self._say = size, say
        threads = max(1, torch.get_num_threads() // size)
        # Forked processes cannot use CUDA, nor torch's threads.
        context = multiprocessing.get_context("spawn")
        told, self._end = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            size, mp_context=context, initializer=_begin, initargs=(make, threads, told)
        )
        self._asked: list[Future[Outcome]] = []

    def outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Outcome]]:
        """The outcome of each request, as they come to be known.

        Where memory is too small for as many at a time, half as many go on.

        Raises:
            TrainingError: as `TrainedEvaluator.outcome`, or a process was killed.
        """
        waiting, again = iter(requests), list[Request]()
        running: dict[Future[Outcome], Request] = {}
        try:
            while True:
                while len(running) < self._most:
                    request = again.pop() if again else next(waiting, None)
                    if request is None:
                        break
                    with without_interrupts():
                        future = self._pool.submit(_work, request)
                    running[future] = request
                    self._asked.append(future)
                if not running:
                    return
                for future in wait_for(running, return_when=FIRST_COMPLETED).done:
                    request = running.pop(future)
                    try:
                        outcome = future.result()
                    except torch.OutOfMemoryError:
                        if self._most == 1:
                            raise
                        self._halve()
                        again.append(request)
                    else:
                        yield request, outcome
        except BrokenProcessPool:
            raise TrainingError(
                "method.parallel: a process that trained candidates was killed, or its network "
                "could not be opened; memory may be too small for so many at a time"
            ) from None

    def _halve(self) -> None:
        before, self._most = self._most, self._most // 2
        self._say(
            f"method.parallel: memory is too small for {before} candidates at a time; going on "
            f"with {self._most}"
        )

    def close(self) -> None:
        """Ends the processes; what they had under way goes on in a later crew."""
        # After an error the others would train to their ends, for hours, before it is said.
        if not all(future.done() for future in self._asked):
            self._end.send(None)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._end.close()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes begun inside never see ctrl-C: a terminal sends it to all, and ours ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(make: Callable[[], TrainedEvaluator], threads: int, told: Connection) -> None:
    global _evaluator
    threading.Thread(target=_end_when, args=(told,), daemon=True).start()
    torch.set_num_threads(threads)
    _evaluator = make()


def _end_when(told: Connection) -> None:
    """Ends this process when the crew says so (nobody reads it, so all see it) or is no more."""
    # A killed parent cannot end its children, and they would go on holding the device and writing
    # to a directory that the next run has opened.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, told])
        os._exit(1)


def _work(request: Request) -> Outcome:
    if _evaluator is None:
        raise RuntimeError("the process has no evaluator")
    try:
        return _evaluator.outcome(request)
    except torch.OutOfMemoryError:
        # Others are to have it, and this process as it tries again.
        torch.cuda.empty_cache()
        raise
