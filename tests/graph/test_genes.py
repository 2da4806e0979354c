"""Genes: from numbers to ids, widths and plans, on a small network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastprune.errors import PlanError
from fastprune.graph import (
    ChannelGraph,
    GeneTable,
    PruningPlan,
    apply_plan,
    gene_scales,
    gene_table,
    trace,
)


class Small(nn.Module):
    """Three convolutions in a row; the third is as wide as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 1)
        self.inner = nn.Conv2d(20, 40, 1)
        self.outer = nn.Conv2d(40, 20, 1)
        self.head = nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.outer(self.inner(x)))


class Chain(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outer(self.inner(self.stem(x))))


ROWS = {"stem": ["stem"], "last": ["outer"], "last.0": ["inner"]}


def chain(*, keep: tuple[str, ...] = (), **given: Any) -> tuple[ChannelGraph, GeneTable]:
    graph = trace(Chain().eval(), torch.zeros(1, 3, 4, 4), keep=keep)
    options: dict[str, Any] = {
        "outputs": ["stem", "last"],
        "middles": ["last.0"],
        "whole": ["last"],
        "layouts": [["stem", "stem", "last.0", "last.0", "last.0"]],
    }
    return graph, gene_table(graph, ROWS, **(options | given))


def test_an_id_keeps_the_first_channels() -> None:
    _, table = chain()

    assert (table.names, table.bases, table.fixed) == (
        ("stem", "last", "last.0"),
        (20, 20, 40),
        {1},
    )
    assert (table.low, table.high) == ((0, 30, 0), (30, 30, 30))
    assert table.stages == ("stem", "last", "last")
    assert table.channels((0, -1, 29)) == (2, 20, 38)
    assert table.widths((15, 30, 16)) == {"stem": 11, "outer": 20, "inner": 23}
    assert table.plan((0, -1, 30)).keep["stem"] == (0, 1)
    assert table.plan((-1, -1, -1)) == table.plan((30, 30, 30))


def test_every_level_of_every_base_is_the_published_product() -> None:
    published = {16, 32, 64, 128, 256, 512, 1024, 2048, 22, 33, 44, 88, 132, 224, 448, 1280}
    published |= {6 * base for base in (22, 33, 44, 88, 132, 224, 448)}
    scales = [(10 + 3 * i) / 100 for i in range(31)]
    assert gene_scales(np.arange(-1, 31)).tolist() == [1.0, *scales]
    for base in published:
        table = GeneTable(("a",), (("0",),), (base,), frozenset(), (0,), ())
        assert [table.channels((i,))[0] for i in range(31)] == [int(base * s) for s in scales]


def test_at_least_one_channel_stays() -> None:
    table = GeneTable(("a",), (("0",),), (3,), frozenset(), (0,), ())
    assert table.channels((0,)) == (1,)


def test_a_plan_leaves_the_widths_of_its_gene() -> None:
    graph, table = chain()
    gene = (9, -1, 22)
    plan = table.plan(gene)
    small = apply_plan(Chain().eval(), graph, plan)

    assert (small.stem.out_channels, small.inner.out_channels) == (7, 30)
    assert graph.cost(table.widths(gene)) == graph.cost(plan)
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_widths_of_many_genes() -> None:
    graph, table = chain()
    genes = np.random.default_rng(0).integers(-1, 31, (50, 3))
    genes[:, 1] = -1
    found = table.width_matrix(graph, genes)

    for gene, row in zip(genes.tolist(), found.tolist(), strict=True):
        assert dict(zip((g.name for g in graph.groups), row, strict=True)) == table.widths(gene)
    for wrong in (genes[:, :2], genes.astype(float), genes[0], genes + 31):
        with pytest.raises(ValueError, match="genes: expected"):
            table.width_matrix(graph, wrong)


def test_layers_that_are_kept_leave_their_ids_and_fix_them() -> None:
    graph, table = chain(keep=("inner",))

    assert (len(table), table.fixed, table.groups[2]) == (3, {1, 2}, ())
    assert table.widths((3, -1, -1)) == {"stem": 3, "outer": 20}
    with pytest.raises(PlanError, match=r"number 3 \(last.0\) is fixed: expected -1, got 4"):
        table.check((3, -1, 4))
    assert table.width_matrix(graph, np.array([[3, -1, -1]])).tolist() == [[3, 20]]


def test_a_group_with_two_convolutions_is_governed_once() -> None:
    graph = trace(Small().eval(), torch.zeros(1, 3, 4, 4))
    rows = {"stem": ["stem"], "mid": ["inner"]}
    table = gene_table(graph, rows, outputs=["stem"], middles=["mid"])

    assert graph.cost(table.widths((0, 0))).params < graph.cost().params
    with pytest.raises(PlanError, match="no layer 'outside'"):
        gene_table(graph, {"a": ["outside"]}, outputs=[])
    with pytest.raises(ValueError, match="'inner' gets its width twice"):
        gene_table(graph, {"a": ["inner"], "b": ["inner"]}, outputs=[])


@pytest.mark.parametrize(
    ("given", "gene"),
    [
        ("3, -1, 7", (3, -1, 7)),
        ("[3 -1 7]", (3, -1, 7)),
        ("(3.0, -1.0, 7.0, 29.846)", (3, -1, 7)),
        ([3, -1, 7], (3, -1, 7)),
        ([3, 30, 7, 41], (3, 30, 7)),
        (np.array([3.0, -1.0, 7.0]), (3, -1, 7)),
        ("4 4 9 9 9", (4, -1, 9)),
        ("4 4 9 9 9 31.5", (4, -1, 9)),
        ("-1 30 9 9 9", (-1, -1, 9)),
        ("baseline", (-1, -1, -1)),
    ],
)
def test_published_layouts_of_a_gene(given: Any, gene: tuple[int, ...]) -> None:
    assert chain()[1].read(given) == gene


def test_what_is_one_number_longer_is_a_gene_first() -> None:
    _, table = chain(whole=(), layouts=[["stem", "last.0"]])

    assert table.read("3 4 5") == (3, 4, 5)
    assert table.read("3 4 25.5") == (3, -1, 4)
    assert table.read("3 4") == (3, -1, 4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "expected ids such as '27 28 29 -1', got none"),
        ("3 x 7", "expected ids such as .* got 'x'"),
        ("3 nan 7", "got 'nan'"),
        ([3, True, 7], "got True"),
        ([3, None, 7], "got None"),
        ("3", "expected 3 or 5 ids, and at most the search's error after them; got 1 numbers"),
        ("1 2 3 4 5 6 7", "got 7 numbers"),
        ("3 2.5 7", r"number 2 \(last\): expected a whole number from -1 to 30, got 2.5"),
        ("3 -1 7.5", r"number 3 \(last.0\): expected a whole number"),
        ("31 -1 7", r"number 1 \(stem\): expected a whole number from -1 to 30, got 31"),
        ("3 -2 7", r"number 2 \(last\): expected a whole number from -1 to 30, got -2"),
        ("3 5 7", r"number 2 \(last\) is fixed: expected -1, got 5"),
        ("3 -1 7 -4", "number 4, after 3 ids: expected the search's error in percent, got -4"),
        ("3 -1 7 100.5", "expected the search's error in percent, got 100.5"),
        ("4 5 9 9 9", "numbers 1 and 2 are both of stem: expected one value, got 4 and 5"),
    ],
)
def test_a_bad_gene_names_the_number(given: Any, expected: str) -> None:
    with pytest.raises(PlanError, match=f"^gene: .*{expected}"):
        chain()[1].read(given)


@pytest.mark.parametrize("gene", [(3, -1), (3, -1, 31), (3, -1, 2.0), (True, -1, 2)])
def test_widths_of_what_is_no_gene(gene: Any) -> None:
    with pytest.raises(PlanError, match="gene: "):
        chain()[1].widths(gene)
