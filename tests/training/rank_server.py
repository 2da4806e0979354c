"""Ranks of a task, forked from one process that has imported everything.

An order a line on standard input: how many ranks, a function in a file and its arguments. A
line back when they have ended: their exit codes. What the function gave on each rank, or the error
that ended it, is in a file of the order's folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401
import torch
import torchvision  # noqa: F401
from torch.distributed import TCPStore

import fastprune.run.pipeline  # noqa: F401
from fastprune import distributed

FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {}


def function(file: str, name: str) -> Callable[..., Any]:
    if (file, name) not in FUNCTIONS:
        sys.path.insert(0, str(Path(file).parent))
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        FUNCTIONS[file, name] = getattr(module, name)
    return FUNCTIONS[file, name]


def rank(order: dict[str, Any], number: int, told: int, answer: Path) -> None:
    """One rank, in a forked process, which hears on a pipe where the store is."""
    with os.fdopen(told) as pipe:
        port = pipe.readline().strip()
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(order["world"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    torch.manual_seed(0)
    code = 0
    try:
        work = function(order["file"], order["name"])
        if order["started"]:
            with distributed.started(order["timeout"]):
                distributed.join(torch.device("cpu"))
                found = work(*order["arguments"])
        else:
            found = work(*order["arguments"])
    except BaseException as error:
        code = 1
        found = {"error": type(error).__name__, "said": str(error)}
        if type(error).__name__ not in order["expected"]:
            traceback.print_exc()
    answer.write_text(json.dumps(found))
    os._exit(code)


def serve() -> None:
    # Whatever else is printed, here or on a rank, must not come between the answers.
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        for line in sys.stdin:
            codes = ended(json.loads(line))
            print(json.dumps(codes), file=replies, flush=True)


def ended(order: dict[str, Any]) -> list[int]:
    """The exit codes of an order's ranks."""
    function(order["file"], order["name"])
    children, pipes = [], []
    for number in range(order["world"]):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(tell)
            rank(order, number, told, Path(order["folder"]) / str(number))
        os.close(told)
        children.append(child)
        pipes.append(tell)
    # Here as torchrun has it in its own process, which outlives the ranks. It has a thread
    # whose locks a process that is forked beside it may find held for ever.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for tell in pipes:
        with os.fdopen(tell, "w") as pipe:
            pipe.write(f"{store.port}\n")
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    serve()
