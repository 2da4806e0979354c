"""Split inference of experts that are made on the spot, as a program of its own.

    python split_script.py

Prints what came of it, a JSON line each; at the end the numbers of its processes, which then wait
for ever.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from functools import partial
from typing import Any

import torch
from torch import nn

from fastprune.errors import ArtifactError, FastpruneError
from fastprune.nn import FusionHead
from fastprune.training.experts import Expert, FusedNetwork
from fastprune.training.split import SplitNetwork, SplitPart

SHAPE = (3, 16, 16)


class Deadly(nn.Module):
    """Lets its process be killed by an image of sevens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (
            x.device.type == "cpu"
            and x.numel()
            and not torch.is_grad_enabled()
            and x[0].eq(7).all()
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def expert(seed: int, *, deadly: bool = False) -> Expert:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(1176, 5)
    )
    made = Expert(model, SHAPE)
    if deadly:
        made.body = nn.Sequential(Deadly(), made.body)
    return made


def missing() -> Expert:
    raise ArtifactError("expert 1: x.safetensors is missing")


def tell(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def error_of(function: Any) -> dict[str, str]:
    try:
        function()
    except (FastpruneError, ValueError) as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": "", "message": ""}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(9)
    head = FusionHead(2352, 5).eval()
    parts = [
        SplitPart("a", 1176, "cpu", partial(expert, 1)),
        SplitPart("b", 1176, "cpu", partial(expert, 2, deadly=True)),
    ]
    opened = partial(SplitNetwork, head=head, input_shape=SHAPE, batch_size=8)
    images = torch.randn(8, *SHAPE)
    fused = FusedNetwork([expert(1), expert(2)], head).eval()
    with opened(parts) as split, torch.no_grad():
        # Fewer images after more: what is left of the larger batch must not be seen.
        same = [torch.equal(split(images[:n]), fused(images[:n])) for n in (8, 3, 1, 8)]
        _, times = split.timed(images)
        alone = split.expert_seconds(1, images)
        tell(
            same=same,
            experts=len(times.experts),
            adds=max(times.experts) + times.head <= times.whole,
            alone=0 < alone < 10,
            children=len(multiprocessing.active_children()),
        )
        tell(**error_of(lambda: split(torch.randn(9, *SHAPE))))
        tell(**error_of(lambda: split(torch.full((2, *SHAPE), 7.0))))
    tell(left=len(multiprocessing.active_children()))
    tell(**error_of(lambda: opened([parts[0], SplitPart("b", 1176, "cpu", missing)])))
    tell(left=len(multiprocessing.active_children()))
    tell(**error_of(lambda: opened(parts[:1])))
    last = SplitPart("c", 1176, "cpu", partial(expert, 3))
    with opened([last], head=FusionHead(1176, 5)):
        tell(pids=[child.pid for child in multiprocessing.active_children()])
        time.sleep(600)


if __name__ == "__main__":
    main()
