"""What racing saves and keeps, on real images.

``PYTHONPATH=benchmarks python benchmarks/training/racing.py ROOT WEIGHTS``, where ROOT is a folder
with CIFAR-10 and WEIGHTS the published ones of ResNet-20, resnet20-12fca82f.th.

Two populations of ResNet-20's candidates at half the MACs, one random and one bred from it, are
measured on the 10,000 test images of CIFAR-10 with the weights they inherit; then many orders and
parts of the images are drawn from what each candidate got right. A few minutes on one core.

``... racing.py ROOT RUN``, where RUN is the directory of a run of
metapruning_resnet20_cifar10.yaml, does so with the first and the last candidates of its search and
the weights that its pruningnet generates.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _population import CPU, EXAMPLE, K, evolution
from bench_shared import Setting
from numpy.typing import NDArray

from fastprune import models, trace
from fastprune.artifact import load_state, restore
from fastprune.data import DataOptions, Placement, Splits, load
from fastprune.methods._pruningnet import GeneratedSubnets, PruningNet
from fastprune.methods._trials import TrialLog
from fastprune.training._racing import Racing
from fastprune.training._union import Subnet
from fastprune.training.shared import SharedEvaluator, inherited_subnets

LEADERS, RECALIBRATED = 10, 4
IMAGES = {2000: 100, 5000: 50, 10_000: 30}
"""Images of a race, and how many races."""


def images(root: str) -> Splits:
    options = DataOptions(
        name="cifar10",
        root=root,
        batch_size=128,
        eval_batch_size=100,
        validation=0,
    )
    return load(options, 0)


def right_of(subnets: Iterable[Subnet], splits: Splits) -> NDArray[np.bool_]:
    """``[K, 10,000]``: what each candidate gets right."""
    shared = SharedEvaluator(subnets, EXAMPLE, device=CPU, precision="auto", channels_last=True)
    shared.recalibrate(splits.train, RECALIBRATED)
    right = []
    for x, y in splits.test.epoch(0, placement=Placement(CPU, channels_last=True)):
        logits = shared.logits(x)
        right.append(torch.stack([logits[n].argmax(1) == y for n in sorted(logits)]))
    found: NDArray[np.bool_] = torch.cat(right, 1).numpy()
    return found


def generated(root: str, run: str) -> dict[str, NDArray[np.bool_]]:
    """The first and the last K candidates of a search by a trained pruningnet."""
    network = models.resolve("resnet20_cifar")
    model = network.build(shortcut="B").eval()
    assert network.genes is not None
    net = PruningNet(model, network.genes(trace(model, EXAMPLE)), EXAMPLE)
    restore(net, load_state(Path(run) / "pruningnet.safetensors"))
    subnets, splits = GeneratedSubnets(net), images(root)
    codes = [trial.code for trial in TrialLog(Path(run) / "trials.jsonl", read_only=True)]
    return {
        name: right_of(subnets([net.table.plan(code) for code in some]), splits)
        for name, some in {"first": codes[:K], "last": codes[-K:]}.items()
    }


def inherited(root: str, weights: str) -> dict[str, NDArray[np.bool_]]:
    """A random population of candidates with inherited weights, and one bred from it."""
    made = Setting.made()
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model = made.model
    model.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    splits = images(root)
    subnets = partial(inherited_subnets, model, made.graph)
    search = evolution(made.space, 2)
    found = []
    while asked := search.ask():
        plans = made.plans([candidate.code for candidate in asked])
        found.append(right_of(subnets(plans), splits))
        for candidate, row in zip(asked, found[-1], strict=True):
            search.tell(candidate.number, float(row.mean()))
    return dict(zip(("random", "bred"), found, strict=True))


def told(name: str, right: NDArray[np.bool_], count: int, races: int) -> str:
    """Shares of images seen and of the true best kept, over draws of images."""
    seen = kept = 0.0
    for seed in range(races):
        drawn = np.random.default_rng(seed).permutation(right.shape[1])[:count]
        race = Racing(len(right), LEADERS, count)
        for first in range(0, count, 100):
            race.add(right[list(race.remaining)][:, drawn[first : first + 100]])
        ended = race.standings()
        whole = -right[:, drawn].sum(1)
        true = np.argsort(whole, kind="stable")[:LEADERS]
        fitness = np.array([standing.fitness for standing in ended])
        best = np.argsort(-fitness, kind="stable")[:LEADERS]
        kept += len(set(true.tolist()) & set(best.tolist())) / LEADERS
        seen += sum(standing.images for standing in ended) / len(right) / count
    return (
        f"{name}, {len(right)} candidates, {count:,} images: {seen / races:.1%} of the "
        f"images, {kept / races:.2%} of the top {LEADERS} ({races} draws)"
    )


def main() -> None:
    torch.set_num_threads(1)
    root, source = sys.argv[1:]
    pools = (generated if Path(source).is_dir() else inherited)(root, source)
    pools["both"] = np.concatenate(list(pools.values()))
    for name, right in pools.items():
        for count, races in IMAGES.items():
            print(told(name, right, count, races))


if __name__ == "__main__":
    main()
