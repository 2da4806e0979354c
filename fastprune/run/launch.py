"""Beginning a run on several GPUs of this machine, by torchrun."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import torch

from fastprune.config import RunConfig
from fastprune.distributed import launched, rank, started
from fastprune.errors import ConfigError
from fastprune.processor import cores

__all__ = ["check_ranks", "launch", "rank", "started"]


def check_ranks(count: int, config: RunConfig) -> None:
    """Refuses more ranks than there are GPUs, and ranks of ranks.

    Args:
        count: of ranks.
        config: of the run; with ``device: cpu`` it may have any number.

    Raises:
        ConfigError: the message says what would be right.
    """
    if launched() > 1:
        raise ConfigError("--gpus: torchrun has begun these processes already; leave it out")
    if config.device == "cpu":
        return
    there = torch.cuda.device_count()
    if count > there:
        known = f"there are {there} GPUs" if there else "there is no GPU"
        raise ConfigError(
            f"--gpus: got {count}, but {known} here; device=cpu begins as many processes on "
            "the CPU"
        )


def launch(count: int, arguments: Sequence[str], threads: int | None) -> int:
    """Runs ``torchrun --standalone --nproc-per-node COUNT -m fastprune ARGUMENTS``.

    Args:
        count: of processes.
        arguments: of each.
        threads: of each on the CPU; None shares the cores out.

    Returns:
        The exit code: the one of the first process that failed, which has said why.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Of a process that failed or a signal, it says again at length what is said in one line.
    for name in ("torch.distributed", *logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # And so does its C++, frame by frame.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Otherwise it gives each process one thread, and warns.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or max(1, cores() // count)))
    given = ["--standalone", "--nproc-per-node", str(count), "-m", "fastprune", *arguments]
    try:
        run(parse_args(given))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(
                f"fastprune: error: rank {number} was ended by signal {-failure.exitcode}; the "
                "same command goes on from here",
                file=sys.stderr,
            )
            return 128 - failure.exitcode
        return int(failure.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
