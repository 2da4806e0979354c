"""What raising MetaPruning's genes into the budget does for their fitness, on real images.

``PYTHONPATH=benchmarks python benchmarks/methods/filled.py ROOT RUN``, where ROOT is a folder with
CIFAR-10 and RUN the directory of a run of metapruning_resnet20_cifar10.yaml.

Twenty random genes under half of ResNet-20's MACs, and the same genes raised at random until no
step fits: MACs, and accuracy on 1,000 test images with the weights that the run's pruningnet
generates. Half a minute on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from _population import CPU, EXAMPLE
from numpy.typing import NDArray

from fastprune import models, trace
from fastprune.artifact import load_state, restore
from fastprune.data import DataOptions, load
from fastprune.methods._pruningnet import GeneratedSubnets, PruningNet
from fastprune.search import Evolution, Space
from fastprune.search.base import repair
from fastprune.training.evaluator import Request
from fastprune.training.scored import ScoredEvaluator

GENES, IMAGES, RECALIBRATED = 20, 1000, 6


def main() -> None:
    torch.set_num_threads(1)
    root, run = sys.argv[1:]
    network = models.resolve("resnet20_cifar")
    model = network.build(shortcut="B").eval()
    graph = trace(model, EXAMPLE)
    assert network.genes is not None
    table = network.genes(graph)
    net = PruningNet(model, table, EXAMPLE)
    restore(net, load_state(Path(run) / "pruningnet.safetensors"))

    def macs(genes: NDArray[np.int64]) -> NDArray[np.float64]:
        whole = graph.cost().macs
        return np.asarray(graph.costs(table.width_matrix(graph, genes)).macs / whole)

    space = Space(table.low, table.high, lambda genes: macs(genes) <= 0.5, fill=True)
    plain = Space(table.low, table.high, space.feasible)
    search = Evolution(
        plain, 0, population=GENES, select_num=5, mutation_num=1, crossover_num=1, iterations=1
    )
    drawn = np.array([candidate.code for candidate in search.ask()])
    genes = np.concatenate([drawn, repair(space, drawn, np.random.default_rng(0))])
    options = DataOptions(
        name="cifar10",
        root=root,
        batch_size=128,
        eval_batch_size=250,
        validation=5000,
        test_limit=IMAGES,
    )
    evaluator = ScoredEvaluator(
        GeneratedSubnets(net),
        EXAMPLE,
        load(options, 0),
        split="test",
        batches=RECALIBRATED,
        device=CPU,
        precision="auto",
        channels_last=True,
    )
    requests = [Request(table.plan(tuple(gene))) for gene in genes.tolist()]
    fitness = np.array([outcome.fitness for _, outcome in evaluator.outcomes(requests)])
    for name, some in (("drawn", slice(GENES)), ("raised", slice(GENES, None))):
        print(
            f"{name}: {macs(genes[some]).mean():.3f} of the MACs, fitness "
            f"{fitness[some].mean():.2f} on average, {fitness[some].max():.2f} at best"
        )
    better = int((fitness[GENES:] > fitness[:GENES]).sum())
    print(f"better after raising: {better} of {GENES}")


if __name__ == "__main__":
    main()
