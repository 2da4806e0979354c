"""Counting the pruned network from the graph gives what counting the network itself gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastprune.errors import FastpruneError
from fastprune.graph import PruningPlan, apply_plan, trace

NETWORKS = {
    "grouped transposed": nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ConvTranspose2d(16, 16, 2, 2, groups=8), nn.Conv2d(16, 4, 1)
    ),
    "transposed": nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(12, 4, 1)
    ),
    "norm and pools": nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(16, 4),
    ),
}


@pytest.mark.parametrize("counting", ["macs", "thop", "ptflops", "metapruning"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_is_counted_as_the_network_it_leaves(name: str, counting: str) -> None:
    model, example = NETWORKS[name].eval(), torch.zeros(1, 3, 8, 8)
    graph = trace(model, example)
    for group in graph.groups:
        plan = PruningPlan({group.name: tuple(range(group.channels // 2))})
        small = apply_plan(model, graph, plan)
        counted = trace(small, example).count(counting=counting)
        assert graph.count(plan, counting).macs == counted.macs


def test_the_published_rules_on_a_network_counted_by_hand() -> None:
    graph = trace(NETWORKS["norm and pools"].eval(), torch.zeros(1, 3, 8, 8))
    conv, norm = 16 * 36 * 27, 16 * 36

    assert graph.count().macs == conv + 64
    assert graph.count(counting="thop").macs == conv + 4 * norm + 16 * 10 + 4 * 31
    assert graph.count(counting="ptflops").macs == conv + 2 * norm + norm + 16 * 9 + 64
    assert graph.count(counting="metapruning").macs == conv + norm + 4 * 16 * 9 + 9 * 16 + 68


def test_an_unknown_rule_names_the_known() -> None:
    graph = trace(NETWORKS["transposed"], torch.zeros(1, 3, 8, 8))
    with pytest.raises(FastpruneError, match=r"counting: unknown rule 'flops'.*ptflops"):
        graph.count(counting="flops")
