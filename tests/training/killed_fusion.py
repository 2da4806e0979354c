"""Trains a fusion head in child processes that kill themselves with SIGKILL at every third file.

    python killed_fusion.py FOLDER

Prints a JSON line each for a training that nobody killed, and for kills before and after a file
was put in its place: how many, and the digest of the weights it ended with.
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

from fastprune.nn import FusionHead
from fastprune.training.fusion import Features, FusionOptions, fit_head


def train(folder: Path | None) -> str:
    """Digest of the head after training, or after what was left of it."""
    torch.manual_seed(0)
    head = FusionHead(12, 4)
    parts = [
        Features(torch.tanh(torch.randn(n, 12)), torch.randint(4, (n,)), (n,)) for n in (90, 30)
    ]
    options = FusionOptions(epochs=8, checkpoint_every=0, lr=0.01, batch_size=32)
    result = fit_head(head, *parts, options, directory=folder, seed=0)
    assert result.epochs == 8
    digest = hashlib.sha256(str(result.kept_epoch).encode())
    for tensor in head.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def killed(folder: Path, when: str) -> bool:
    """Whether a forked process came to its end before the third file; then it left a digest."""
    pid = os.fork()
    if pid == 0:
        calls, replace = 0, os.replace

        def patched(*given: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 3 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*given)
            if calls == 3 and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = patched
        try:
            (folder / "digest.txt").write_text(train(folder / "training"))
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"digest": train(None)}), flush=True)
    for when in ("before", "after"):
        folder = Path(sys.argv[1]) / when
        folder.mkdir()
        kills = 0
        while killed(folder, when):
            kills += 1
            assert kills < 50, "no progress between kills"
        found = {"kills": kills, "digest": (folder / "digest.txt").read_text()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
