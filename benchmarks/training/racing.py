"""What racing saves and keeps, on real images.

``PYTHONPATH=benchmarks python benchmarks/training/racing.py ROOT WEIGHTS``, where ROOT is a folder
with CIFAR-10 and WEIGHTS the published ones of ResNet-20, resnet20-12fca82f.th.

Two populations of ResNet-20's candidates at half the MACs, one random and one bred from it, are
measured on 2,000 test images of CIFAR-10 with the weights they inherit; then many populations and
orders of images are drawn from what each candidate got right. A few minutes on one core.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch
from bench_shared import CPU, K, Setting
from numpy.typing import NDArray

from fastprune.data import DataOptions, Placement, load
from fastprune.search import Evolution
from fastprune.training._racing import Racing
from fastprune.training.shared import SharedEvaluator, inherited_subnets

LEADERS, IMAGES, RECALIBRATED = 10, 2000, 4


def measured(root: str, weights: str) -> list[NDArray[np.bool_]]:
    """``[K, IMAGES]`` of each population: what each candidate gets right."""
    made = Setting.made()
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model = made.model
    model.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    options = DataOptions(
        name="cifar10",
        root=root,
        batch_size=128,
        eval_batch_size=100,
        validation=0,
        test_limit=IMAGES,
    )
    splits = load(options, 0)
    subnets = partial(inherited_subnets, model, made.graph)
    search = Evolution(
        made.space,
        0,
        population=K,
        select_num=10,
        mutation_num=K // 2,
        crossover_num=K // 2,
        iterations=2,
        mutation_probability=0.1,
    )
    found = []
    while asked := search.ask():
        plans = made.plans([candidate.code for candidate in asked])
        shared = SharedEvaluator(subnets(plans), torch.zeros(1, 3, 32, 32), device=CPU)
        shared.recalibrate(splits.train, RECALIBRATED)
        right = []
        for x, y in splits.test.epoch(0, placement=Placement(CPU)):
            logits = shared.logits(x)
            right.append(torch.stack([logits[n].argmax(1) == y for n in range(len(asked))]))
        found.append(torch.cat(right, 1).numpy())
        for candidate, row in zip(asked, found[-1], strict=True):
            search.tell(candidate.number, float(row.mean()))
    return found


def told(name: str, right: NDArray[np.bool_], images: int, populations: int) -> str:
    """Shares of images seen and of the true best kept, over draws of images."""
    seen = kept = 0.0
    for seed in range(populations):
        drawn = np.random.default_rng(seed).choice(
            right.shape[1], images, replace=images > right.shape[1]
        )
        race = Racing(len(right), LEADERS, images)
        for first in range(0, images, 100):
            race.add(right[list(race.remaining)][:, drawn[first : first + 100]])
        ended = race.standings()
        whole = -right[:, drawn].sum(1)
        true = np.argsort(whole, kind="stable")[:LEADERS]
        fitness = np.array([standing.fitness for standing in ended])
        best = np.argsort(-fitness, kind="stable")[:LEADERS]
        kept += len(set(true.tolist()) & set(best.tolist())) / LEADERS
        seen += sum(standing.images for standing in ended) / len(right) / images
    return (
        f"{name}, {len(right)} candidates, {images:,} images: {seen / populations:.1%} of the "
        f"images, {kept / populations:.2%} of the top {LEADERS} ({populations} draws)"
    )


def main() -> None:
    torch.set_num_threads(1)
    random, bred = measured(*sys.argv[1:])
    pools = {"random": random, "bred": bred, "both": np.concatenate((random, bred))}
    for name, right in pools.items():
        print(told(name, right, IMAGES, 100))
        # As many as a whole test split, drawn with repetition.
        print(told(name, right, 10_000, 20))


if __name__ == "__main__":
    main()
