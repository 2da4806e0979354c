"""How near the latency predicted from a table of layers is to the one measured.

    python benchmarks/latency/predicted.py resnet56_cifar --batch 16 --mode eager
    python benchmarks/latency/predicted.py mobilenet_cifar --solve 0.75 0.6 0.45

Ten random plans are measured whole, in turns with the unpruned network, and predicted. With
``--solve`` budgets are solved too, and what they give is measured. One thread, CPU time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import fastprune as fp
from fastprune import criteria, models
from fastprune.errors import BudgetError
from fastprune.graph.budget import extremes
from fastprune.latency import DeviceClock, LatencyOptions, plan_within
from fastprune.latency.calls import calls_of
from fastprune.latency.solving import LatencyModel
from fastprune.latency.table import LayerTable, points_of


def random_plans(graph: fp.ChannelGraph, count: int) -> list[fp.PruningPlan]:
    """Plans whose groups keep about the same share of their channels, another in each plan."""
    draws = np.random.default_rng(0)
    plans = []
    for _ in range(count):
        share = draws.uniform(0.15, 0.95)
        keep = {}
        for group in graph.groups:
            kept = group.channels * float(np.clip(draws.normal(share, 0.2), 0.1, 1))
            keep[group.name] = tuple(range(max(1, round(kept))))
        plans.append(fp.PruningPlan(keep, graph.widths()))
    return plans


def measured_table(
    graph: fp.ChannelGraph, clock: DeviceClock
) -> tuple[LatencyModel, int, int, float]:
    """The model, the kinds and points that were measured, and the seconds of CPU that took."""
    calls = calls_of(graph, clock.setting.batch_size)
    begun, tables = time.process_time(), {}
    for call in calls:
        if call.kind not in tables:
            points = points_of(call.kind)
            times = clock.layer(call, points)
            tables[call.kind] = LayerTable(call.kind, dict(zip(points, times, strict=True)))
    seconds = time.process_time() - begun
    points = sum(len(table.times) for table in tables.values())
    return LatencyModel(calls, tables), len(tables), points, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--mode", default="eager")
    parser.add_argument("--size", type=int, default=32, help="pixels of an image's side")
    parser.add_argument("--plans", type=int, default=10)
    parser.add_argument("--solve", type=float, nargs="*", default=[])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = models.build(given.network).eval()
    image = torch.zeros(1, 3, given.size, given.size)
    graph = fp.trace(model, image)
    options = LatencyOptions(batch_size=given.batch, mode=given.mode)
    clock = DeviceClock(options, torch.device("cpu"))
    predict, kinds, points, seconds = measured_table(graph, clock)
    print(
        f"{given.network}, batch {given.batch}, {given.mode}, {clock.setting.device}: "
        f"{kinds} kinds of layers, {points} points, {seconds:.1f} s of CPU"
    )
    scores = criteria.l1(model, graph)
    if given.plans:
        low, half = extremes(graph, scores)
        plans = [half, low, *random_plans(graph, given.plans)]
        small = [fp.apply_plan(model, graph, plan) for plan in plans]
        times = clock.networks([model, *small], [image])
        widths = [graph.width_vector(plan) for plan in (graph.full_plan(), *plans)]
        for row, took in zip(widths[:3], times[:3], strict=True):
            predict.put_right(row, took)
        said = np.array([float(predict(row)) for row in widths[3:]])
        real = np.array(times[3:])
        macs = [graph.cost(plan).macs for plan in plans[2:]]
        off = np.abs(said / real - 1)
        print(
            f"unpruned {times[0]:.2f} ms, half way {times[1]:.2f}, floors {times[2]:.2f}; of "
            f"{given.plans} plans: Spearman {spearmanr(said, real).statistic:.3f} "
            f"(MACs {spearmanr(macs, real).statistic:.3f}), relative error mean {off.mean():.3f}, "
            f"largest {off.max():.3f}"
        )
    for share in given.solve:
        try:
            _, facts = plan_within(model, graph, scores, {"latency_ms": share}, clock=clock)
        except BudgetError as error:
            print(error)
            continue
        if facts is not None:
            again = facts.first_reached_ms
            print(
                f"asked for {share:g} ({facts.limit_ms:.2f} ms): predicted "
                f"{facts.predicted_ms:.2f}, reached {facts.reached_ms:.2f}"
                + ("" if again is None else f" after {again:.2f} of a first plan")
            )


if __name__ == "__main__":
    main()
