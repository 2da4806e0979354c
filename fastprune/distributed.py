"""Several processes, called ranks, on one task: torch.distributed under torchrun, nothing else.

All ranks run the same code. `rank` and `world` say which one this is and how many there are; what
one rank alone has to do or decide goes through `first`. Without torchrun, and inside `alone`,
there is one rank, and nothing here costs anything.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastprune.errors import FastpruneError, RankError, ToldElsewhere

__all__ = [
    "alone",
    "broadcast_state",
    "first",
    "gathered",
    "join",
    "launched",
    "local_rank",
    "rank",
    "same",
    "stage",
    "started",
    "sum_over_ranks",
    "taken",
    "world",
]

T = TypeVar("T")

_TOLD, _CODE = "told", "code"
_GRACE = 5.0
"""Seconds in which a rank that fails says so, before others believe that it was killed."""
_LOOK = 0.5
"""Seconds after which a rank looks whether torchrun is still there."""


@dataclass(slots=True)
class _Ranks:
    """What a process knows of the others.

    Attributes:
        rank: of this process.
        world: how many there are.
        store: torchrun's, which outlives them.
        timeout: seconds that one waits for another.
        stage: what is being done, for messages.
        queues: how many were begun, the same on all ranks.
        alone: how deep in `alone` this process is.
    """

    rank: int
    world: int
    store: Store
    timeout: float
    stage: str = "start"
    queues: int = 0
    alone: int = 0


_ranks: _Ranks | None = None


def launched() -> int:
    """How many processes torchrun began; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _ranks is None or _ranks.alone else _ranks.rank


def world() -> int:
    """How many processes work together."""
    return 1 if _ranks is None or _ranks.alone else _ranks.world


@contextmanager
def started(timeout: float) -> Iterator[None]:
    """A context in which the processes that torchrun began are the ranks of one task.

    They hear of each other's errors from the beginning, and work together once they `join`. An
    error of one of them ends all, and is raised as it is in one of them alone; the others raise
    `ToldElsewhere`.

    Args:
        timeout: seconds that one rank waits for another.

    Raises:
        RankError: another rank is gone, or did not come within ``timeout``.
    """
    global _ranks
    if launched() == 1:
        yield
        return
    wait = timedelta(seconds=timeout)
    store, number, size = next(rendezvous("env://", timeout=wait))
    _ranks = _Ranks(number, size, _met(store, number, size, timeout), timeout)
    try:
        with _ending_with_its_parent(), _failing_together(_ranks):
            yield
            if dist.is_initialized():
                # None leaves while another may still read what it holds.
                dist.barrier()
                dist.destroy_process_group()
    finally:
        _ranks = None


def join(device: torch.device) -> None:
    """Lets ranks exchange what lies in memory and on their devices, from here on.

    Args:
        device: of this process; NCCL serves its GPU, and gloo the CPU.
    """
    if _ranks is None or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", _ranks.store),
        rank=_ranks.rank,
        world_size=_ranks.world,
        timeout=timedelta(seconds=_ranks.timeout),
    )


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this process works by itself, as if there were no others."""
    if _ranks is None:
        yield
        return
    _ranks.alone += 1
    try:
        yield
    finally:
        _ranks.alone -= 1


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A context in which errors of waiting for another rank name what was being done."""
    if _ranks is None:
        yield
        return
    before, _ranks.stage = _ranks.stage, name
    yield
    # Not after an error, whose message is still to name it.
    _ranks.stage = before


def first(work: Callable[[], T]) -> T:
    """What ``work`` gives on rank 0, on all ranks; it is done there alone.

    It begins once all ranks are here, so what they read before was not changed by it, and none
    goes on before it is done. Rank 0 is `alone` meanwhile.

    Args:
        work: its result can be pickled, and lies on the CPU.

    Raises:
        FastpruneError: rank 0's, on all ranks.
    """
    if world() == 1:
        return work()
    dist.barrier()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            with alone():
                told[0] = work()
        except FastpruneError as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    found: T = told[0]
    return found


def same(value: T) -> T:
    """Rank 0's value, on all ranks."""
    return first(lambda: value)


def gathered(value: T) -> list[T]:
    """The values of all ranks, in their order, on all ranks."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Adds up over ranks, in place, and gives the tensor, the same to the bit on all ranks."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_state(model: nn.Module) -> None:
    """Gives weights and buffers of rank 0 to the networks of all ranks, to the bit."""
    if world() == 1:
        return
    with torch.no_grad():
        for tensor in model.state_dict().values():
            whole = tensor.contiguous()
            dist.broadcast(whole, src=0)
            if whole is not tensor:
                tensor.copy_(whole)


def taken(count: int) -> Iterator[int]:
    """Numbers from 0 to below ``count``: each is taken by the rank that first asks for it.

    All ranks call it alike; a rank that is slow takes fewer.
    """
    if _ranks is None or world() == 1:
        yield from range(count)
        return
    key = f"queue/{_ranks.queues}"
    _ranks.queues += 1
    while (number := _ranks.store.add(key, 1) - 1) < count:
        yield number


def _met(store: Store, number: int, size: int, timeout: float) -> Store:
    """A part of torchrun's store for these processes alone.

    The store outlives a restart, with all that the processes before it left there, and a number
    of restarts that machines agree on is not to be had. So each process says a word that nobody
    said before, and the first answers all words with one of its own, until all have heard it.

    Raises:
        RankError: they did not all come within ``timeout``.
    """
    until, word = time.monotonic() + timeout, secrets.token_hex(8)
    if number:
        store.set(f"fastprune/hello/{number}", word)
        store.wait([f"fastprune/answer/{word}"], timedelta(seconds=timeout))
        token = store.get(f"fastprune/answer/{word}").decode()
        store.set(f"fastprune/{token}/heard/{number}", "yes")
        return PrefixStore(f"fastprune/{token}", store)
    missing, answered = set(range(1, size)), set[bytes]()
    while missing:
        for other in sorted(missing):
            hello = f"fastprune/hello/{other}"
            if store.check([hello]) and (said := store.get(hello)) not in answered:
                store.set(f"fastprune/answer/{said.decode()}", word)
                answered.add(said)
            if store.check([f"fastprune/{word}/heard/{other}"]):
                missing.discard(other)
        if missing and time.monotonic() > until:
            raise RankError(
                f"start: rank 0 of {size} waited {timeout:g} s for rank "
                f"{', '.join(map(str, sorted(missing)))}"
            )
        time.sleep(0.01)
    return PrefixStore(f"fastprune/{word}", store)


@contextmanager
def _ending_with_its_parent() -> Iterator[None]:
    """A context that SIGTERM ends where torchrun is killed, which then ends nobody itself."""
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True, name="parent").start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _failing_together(ranks: _Ranks) -> Iterator[None]:
    try:
        yield
    except FastpruneError:
        if not _is_first_to_tell(ranks, 2):
            raise ToldElsewhere(_code(ranks)) from None
        raise
    except KeyboardInterrupt:
        # Another rank's end, which torchrun answers by ending all, or the user's will.
        if ranks.rank or _told(ranks):
            raise ToldElsewhere(_code(ranks) if _told(ranks) else 130) from None
        raise
    except RuntimeError as error:
        if not _is_of_waiting(error):
            if not _is_first_to_tell(ranks, 1):
                raise ToldElsewhere(_code(ranks)) from None
            raise
        _wait_until_told(ranks)
        if not _is_first_to_tell(ranks, 2):
            raise ToldElsewhere(_code(ranks)) from None
        raise RankError(_what_happened(ranks, str(error))) from error
    except Exception:
        if not _is_first_to_tell(ranks, 1):
            raise ToldElsewhere(_code(ranks)) from None
        raise


def _is_of_waiting(error: RuntimeError) -> bool:
    """Whether another rank did not do its part; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _what_happened(ranks: _Ranks, error: str) -> str:
    who = f"{ranks.stage}: rank {ranks.rank} of {ranks.world}"
    if "imed out" in error or "imeout" in error:
        return (
            f"{who} waited {ranks.timeout:g} s for the others; one of them hangs, or is slower "
            "than --timeout allows"
        )
    return (
        f"{who} lost another rank, which was killed or whose machine went down; the same command "
        "goes on from here"
    )


def _is_first_to_tell(ranks: _Ranks, code: int) -> bool:
    try:
        if ranks.store.add(_TOLD, 1) > 1:
            return False
        ranks.store.set(_CODE, str(code))
    except RuntimeError:
        # The machine that holds the store is gone; all others are on their own.
        return True
    return True


def _told(ranks: _Ranks) -> bool:
    try:
        return bool(ranks.store.check([_TOLD]))
    except RuntimeError:
        return False


def _code(ranks: _Ranks) -> int:
    try:
        ranks.store.set_timeout(timedelta(seconds=_GRACE))
        return int(ranks.store.get(_CODE))
    except RuntimeError:
        return 1


def _wait_until_told(ranks: _Ranks) -> None:
    until = time.monotonic() + _GRACE
    with suppress(RuntimeError):
        # Until the store is gone, which is so with torchrun.
        while not ranks.store.check([_TOLD]) and time.monotonic() < until:
            time.sleep(0.05)
