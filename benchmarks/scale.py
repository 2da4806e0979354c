"""What the ImageNet configurations would take on 1, 8 and 64 GPUs: arithmetic, and no measurement.

    python benchmarks/scale.py [PATTERN]

Prints the tables of docs/scale.md. MACs, parameters and numbers of candidates are counted; the
rates at the top of this file are assumptions, to be replaced by what a machine was measured to do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from fastprune import trace
from fastprune.config import load_config
from fastprune.methods._abc_options import AbcOptions
from fastprune.methods._codes import space_of, units_of
from fastprune.methods._metapruning_options import MetaPruningOptions, algorithm_of, table_of
from fastprune.methods._pruningnet import PruningNet
from fastprune.models import resolve
from fastprune.search.base import draw

CONFIGS = Path(__file__).parents[1] / "configs"
IMAGES = 1_281_167

# Assumed, of one GPU.
GMACS = 30_000.0
"""A second, in bf16: ResNet-50 trains 2,450 images/s, a step being three forward passes."""
DEPTHWISE = 1 / 3
"""What of that MobileNets reach."""
MEMORY = 4.3e12
"""Bytes a second, read and written."""
LINKS = {8: 300e9, 64: 50e9}
"""Bytes a second that each GPU sends in an all-reduce: inside a machine, and between machines."""


def exchange(parameters: float, gpus: int) -> float:
    """Seconds of an all-reduce of gradients in float32, each sent and received in a ring."""
    return 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * 4 * parameters / LINKS[gpus]


def step(macs: float, images: float, parameters: float, gpus: int, speed: float) -> float:
    """Seconds of a training step; the exchange hides behind the backward pass, two thirds."""
    compute = 3 * macs * images / gpus / (speed * 1e9)
    # Weights, gradients and momenta are read and written once each.
    compute += 6 * 4 * parameters / MEMORY
    return max(compute, compute / 3 + exchange(parameters, gpus))


def main() -> None:
    print("| configuration | GPUs | fine-tuning, images/s | of its step, gradients | search |")
    print("| --- | --- | --- | --- | --- |")
    pattern = sys.argv[1] if len(sys.argv) > 1 else "*"
    for file in sorted(CONFIGS.glob(f"{pattern}_imagenet.yaml")):
        config = load_config(file)
        options, batch = config.method, config.data.batch_size
        network = resolve(config.model.name)
        torch.manual_seed(0)
        model = network.build(1000, **config.model.options).eval()
        example = torch.zeros(1, 3, 224, 224)
        graph = trace(model, example)
        speed = GMACS * (DEPTHWISE if "mobilenet" in config.model.name else 1)
        generator = np.random.default_rng(0)
        held = config.data.validation
        if isinstance(options, AbcOptions):
            units = units_of(options.units, graph, network)
            space = space_of(options.max_preserve, graph, config.prune.budget, units)
            codes = draw(space, 64, generator)
            costs = [graph.cost(units.widths(graph, tuple(code))) for code in codes.tolist()]
            candidates = options.food_number + options.max_cycle * (2 * options.food_number + 1)
        else:
            assert isinstance(options, MetaPruningOptions)
            table = table_of(network, graph)
            space = algorithm_of(options, table, graph, config.prune.budget, 0)._space
            genes = draw(space, 64, generator)
            costs = [graph.cost(table.widths(tuple(gene))) for gene in genes.tolist()]
            candidates = options.population * options.iterations
        macs = float(np.mean([cost.macs for cost in costs]))
        params = float(np.mean([cost.params for cost in costs]))
        for gpus in (1, 8, 64):
            tuned = step(macs, batch, params, gpus, speed)
            share = exchange(params, gpus) / tuned
            if isinstance(options, AbcOptions):
                seen = options.calfitness_epoch * (IMAGES - held) * 3 + held
                one = seen * macs / (speed * 1e9)
                # Phases of as many candidates as there are sources, and a scout.
                phases = -(-options.food_number // gpus)
                rounds = phases + options.max_cycle * (2 * phases + 0.2)
                said = f"{candidates:,} candidates: {one * rounds / 3600:,.0f} h"
            else:
                net = PruningNet(model, table, example)
                weights = sum(p.numel() for p in net.parameters())
                middle = graph.cost(table.widths(net.middle)).macs
                steps = options.recipe.epochs * (IMAGES - held) / batch
                trained = steps * step(middle, batch, weights, gpus, speed)
                measured = candidates * (held + options.batches * batch) * macs / (speed * 1e9)
                said = (
                    f"pruningnet {trained / 3600:,.1f} h (gradients {4 * weights / 1e9:.1f} GB a "
                    f"step), {candidates:,} candidates {measured / gpus / 3600:,.1f} h"
                )
            name = file.stem.removesuffix("_imagenet")
            print(f"| {name} | {gpus} | {batch / tuned:,.0f} | {share:.0%} | {said} |", flush=True)


if __name__ == "__main__":
    main()
