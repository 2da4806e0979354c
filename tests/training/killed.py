"""Trains in child processes that kill themselves with SIGKILL at one system call after another.

    python killed.py FOLDER

Prints one JSON line a moment: the call, how often the training was killed, and the digest of the
weights it ended with; first comes the digest of a training that nobody killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune.data import DataOptions, load
from fastprune.nn import GrowingPenalty
from fastprune.training import FocusOptions, TrainingOptions, fit

MOMENTS = [
    # (function of os, before or after it, every so many calls)
    ("fsync", "before", 5),
    ("replace", "before", 7),
    ("replace", "after", 6),
    ("step", "after", 3),
]


def train(folder: Path | None) -> str:
    """Digest of weights and a hook's state after training, or after what was left of it."""
    splits = load(
        DataOptions(batch_size=32, validation=40, train_limit=100, test_limit=40), seed=0
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(512, 10),
    )
    options = TrainingOptions(
        epochs=3,
        lr=0.05,
        checkpoint_every=0,
        keep="best",
        recalibrate_batches=2,
        focus=FocusOptions(classes=(3, 5)),
    )
    penalty = GrowingPenalty(
        dict(model.named_parameters()),
        penalised={"0.weight": torch.ones(8, 3, 3, 3, dtype=torch.bool)},
        schedule="x",
        granularity=0.1,
        limit=10,
        steps=12,
        target=30,
    )
    result = fit(
        model,
        splits,
        options,
        directory=folder,
        seed=0,
        device="cpu",
        after_backward=penalty,
        after_step=lambda _: COUNTED.call("step"),
        after_epoch=penalty.after_epoch,
    )
    assert [record.epoch for record in result.history] == [1, 2, 3]
    if folder is not None:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3], lines
    digest = hashlib.sha256(json.dumps(penalty.state_dict()).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


class Counted:
    """Counts calls and dies at one of them."""

    def __init__(self) -> None:
        self.name, self.left = "", 0

    def call(self, name: str) -> None:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def patch(self, name: str, when: str) -> None:
        if name == "step":
            return
        function = getattr(os, name)

        def patched(*given: Any) -> Any:
            if when == "before":
                self.call(name)
            result = function(*given)
            if when == "after":
                self.call(name)
            return result

        setattr(os, name, patched)


COUNTED = Counted()


def child(folder: Path, name: str, when: str, calls: int) -> bool:
    """Whether a training in a forked process came to its end; if so its digest is in a file."""
    pid = os.fork()
    if pid == 0:
        try:
            COUNTED.name, COUNTED.left = name, calls
            COUNTED.patch(name, when)
            (folder / "digest.txt").write_text(train(folder / "training"))
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def main() -> None:
    torch.set_num_threads(1)
    # In this process, so that its children find every module loaded.
    print(json.dumps({"digest": train(None)}), flush=True)
    for name, when, calls in MOMENTS:
        folder = Path(sys.argv[1]) / f"{name}-{when}"
        folder.mkdir()
        kills = 0
        while not child(folder, name, when, calls):
            kills += 1
            assert kills < 50, "no progress between kills"
        found = {"call": name, "kills": kills, "digest": (folder / "digest.txt").read_text()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
