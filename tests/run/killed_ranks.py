"""Runs under torchrun whose ranks are killed at random, against one that nobody disturbs.

    python tests/run/killed_ranks.py FOLDER [KILLS]

Two agents of a process each meet on loopback as two machines would. A random one of the processes
is killed (SIGKILL) at a random moment, ten times if not told otherwise, over baseline, search and
fine-tuning; torchrun begins all again. What is left at the end has to be the same to the byte.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CONFIG", "left", "two_machines"]

CONFIG: dict[str, Any] = {
    "model": {"name": "resnet20_cifar", "options": {"depth": 8}},
    "data": {"name": "digits", "train_limit": 192, "test_limit": 40, "validation": 40},
    "baseline": {"epochs": 5, "lr": 0.05, "checkpoint_every": 0},
    "method": {
        "name": "abc",
        "food_number": 3,
        "max_cycle": 2,
        "calfitness_epoch": 1,
        "fitness": {"lr": 0.02, "checkpoint_every": 0},
    },
    "finetune": {"epochs": 5, "lr": 0.05, "checkpoint_every": 0},
    "threads": 1,
    "device": "cpu",
    "latency": {"repeats": 0},
}
STAGES = ("baseline", "plan", "finetune")
_BYTES = ("baseline.safetensors", "plan.json", "inherited.safetensors", "pruned.safetensors")


def two_machines(config: Path, folder: Path, *, restarts: int = 0) -> list[subprocess.Popen[str]]:
    """The agents of a run on two machines, as they are begun there, both of them here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"),
        *(
            "--max-restarts",
            str(restarts),
            "--monitor-interval",
            "0.1",
            "--local-addr",
            "127.0.0.1",
        ),
        *("-m", "fastprune", "run", str(config), "--out", str(folder)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]


def ranks_of(agents: list[subprocess.Popen[str]]) -> list[int]:
    """Processes that the agents have begun and that run."""
    found = []
    for agent in agents:
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        try:
            found += [int(pid) for pid in children.read_text().split()]
        except FileNotFoundError:
            continue
    return found


def left(folder: Path) -> dict[str, Any]:
    """What a run left, but for times."""
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in _BYTES}
    return {**found, "trials": rows}


def main() -> None:
    folder = Path(sys.argv[1])
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "killed.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    begun = time.monotonic()
    agents = two_machines(config, folder / "whole")
    said = [agent.communicate()[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    whole = time.monotonic() - begun
    print(f"undisturbed: {whole:.0f} s", flush=True)
    stages = [STAGES[len(STAGES) * number // kills] for number in range(kills)]
    assert killed(config, folder / "killed", stages, random.Random(0)) == left(folder / "whole")
    print(f"{kills} kills, the same bytes")


def killed(
    config: Path, folder: Path, stages: Sequence[str], draw: random.Random
) -> dict[str, Any]:
    """What a run leaves of which a rank was killed in each of these stages, some time after it
    was begun or went on."""
    # A kill may cost each of the agents a restart, and one more where they miss each other.
    agents = two_machines(config, folder, restarts=3 * len(stages))
    for stage in stages:
        since = time.time()
        # Or in a later one, where this one has just ended.
        later = [folder / "work" / name for name in STAGES[STAGES.index(stage) :]]
        while len(ranks_of(agents)) < 2 or not any(written(work, since) for work in later):
            assert all(agent.poll() is None for agent in agents), "the run ended before its kills"
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 1))
        os.kill(draw.choice(ranks_of(agents)), signal.SIGKILL)
        print(f"killed in {stage}", flush=True)
        # Until torchrun has ended the other one too.
        time.sleep(1)
    said = [agent.communicate()[1][-4000:] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n\n".join(said)
    return left(folder)


def written(folder: Path, since: float) -> bool:
    """Whether a training or a search has gone on since a time."""
    files = [file for file in folder.rglob("*") if file.suffix in (".pt", ".jsonl")]
    times = []
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times, default=0.0) > since


if __name__ == "__main__":
    main()
