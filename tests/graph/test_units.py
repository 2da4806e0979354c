"""Units and codes on small networks: widths, ties, what follows, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastprune as fp
from fastprune.errors import PlanError
from fastprune.graph import (
    ChannelGraph,
    Units,
    parse_code,
    units_by_group,
    units_by_name,
    units_by_stage,
)
from fastprune.graph.units import Following, map_sizes


class Split(nn.Module):
    """Some of one layer's channels are added to one layer's, some to another's."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(3, 11, 1)
        self.first, self.second = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 1)
        self.last = nn.Conv2d(11, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.both(x) + torch.cat([self.first(x), self.second(x)], 1)
        return self.head(self.last(x))


def graph_of(keep: tuple[str, ...] = ()) -> ChannelGraph:
    """Groups 0 (8 channels, 8x8), 1 (7, 8x8), 2 (12, 4x4) and 4 (10, 1x1)."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 7, 3, padding=1),
        nn.Conv2d(7, 12, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(12 * 16, 10),
        nn.Linear(10, 2),
    )
    return fp.trace(model, torch.zeros(1, 3, 8, 8), keep=keep)


def test_an_integer_keeps_whole_tenths_of_its_groups_and_at_least_one_channel() -> None:
    graph = graph_of()
    units = Units(("a", "b"), (("0", "1"), ("2",)))

    assert len(units) == 2
    assert units.widths(graph, (1, 10)) == {"0": 1, "1": 1, "2": 12}
    assert units.widths(graph, [7, 3]) == {"0": 5, "1": 4, "2": 3}
    for k in range(1, 11):
        assert units.widths(graph, (k, k)) == {
            name: max(channels * k // 10, 1) for name, channels in (("0", 8), ("1", 7), ("2", 12))
        }


def test_many_codes_at_once_are_each_code_alone() -> None:
    graph = graph_of()
    units = Units(("a", "b"), (("0", "2"), ("4",)), (Following("1", 1, (("4", 0), ("2", 0))),))
    codes = np.array([(i, j) for i in range(1, 11) for j in range(1, 11)])
    widths = units.width_matrix(graph, codes)

    assert widths.dtype == np.int64
    for code, row in zip(codes.tolist(), widths.tolist(), strict=True):
        assert row == graph.width_vector(units.widths(graph, code)).tolist()
    assert graph.costs(widths).macs[37] == graph.cost(units.widths(graph, codes[37])).macs
    assert units.width_matrix(graph, np.zeros((0, 2), np.int64)).shape == (0, 4)


def test_widths_that_follow_are_sums_of_others() -> None:
    graph = graph_of()
    # In their order: 2 follows 1, which follows 0; 4 is of no unit and stays whole.
    following = (Following("1", 1, (("0", 0),)), Following("2", 0, (("1", 1), ("0", 1))))
    units = Units(("a",), (("0",),), following)

    assert units.widths(graph, (5,)) == {"0": 4, "1": 1, "2": 5}
    assert units.width_matrix(graph, np.array([[5]])).tolist() == [[4, 1, 5, 10]]
    whole = Units((), (), (Following("1", 0, (("4", 1),)),))
    with pytest.raises(ValueError, match="from 1 to the channels of its group"):
        graph.costs(whole.width_matrix(graph, np.zeros((1, 0), np.int64)))


def test_units_by_group_stage_and_name() -> None:
    graph = graph_of()

    assert units_by_group(graph).groups == (("0",), ("1",), ("2",), ("4",))
    assert units_by_group(graph).names == ("0", "1", "2", "4")
    stages = units_by_stage(graph)
    assert stages.names == ("8x8", "4x4", "1x1")
    assert stages.groups == (("0", "1"), ("2",), ("4",))
    assert units_by_name(graph, "([12])").groups == (("1",), ("2",))
    assert units_by_name(graph, "()[124]").groups == (("1", "2", "4"),)


def test_groups_of_one_layer_go_by_the_layers_name() -> None:
    graph = fp.trace(Split(), torch.zeros(1, 3, 4, 4))

    assert [group.name for group in graph.groups] == ["both", "both:1", "last"]
    assert units_by_name(graph, "(both)").groups == (("both", "both:1"),)
    assert units_by_stage(graph).groups == (("both", "both:1", "last"),)


def test_maps_of_tokens_are_measured_without_their_channels() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))

    assert map_sizes(fp.trace(model, torch.zeros(1, 5, 6))) == {"0": "5"}
    assert map_sizes(fp.trace(model, torch.zeros(1, 6))) == {"0": "1x1"}


def test_a_group_without_feature_maps_is_a_stage_of_its_own() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 3))
    graph = fp.trace(model, torch.zeros(1, 4, dtype=torch.int64))

    assert units_by_stage(graph).names == ("0", "4")
    assert units_by_stage(graph).groups == (("0",), ("1",))


def test_kept_layers_leave_their_units() -> None:
    graph = graph_of(keep=("0", "4"))

    assert units_by_stage(graph).groups == (("1",), ("2",))
    assert units_by_group(graph).widths(graph, (1, 5)) == {"1": 1, "2": 6}


@pytest.mark.parametrize(
    "given",
    ["5 5 10", "5,5,10", " 5, 5 ,10 ", "5\t5\n10", [5, 5, 10], (5, 5, 10), [np.int64(5), 5, 10]],
)
def test_codes_are_read_from_text_and_lists(given: object) -> None:
    code = parse_code(given)

    assert code == (5, 5, 10)
    assert all(type(k) is int for k in code)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ("", "got ''"),
        ("5 a", "got 'a'"),
        ("5,,5", "got ''"),
        ("5 5.0", "got '5.0'"),
        ("5;5", "got '5;5'"),
        ("٥", "got '٥'"),
        ("9" * 5000, "got '9999"),
        ([5, True], "got True"),
        ([5, 5.0], "got 5.0"),
        ([5, "5"], "got '5'"),
        ([], "got none"),
        (5.5, "got 5.5"),
        (True, "got True"),
        (None, "got None"),
        ({5: 5}, "got {5: 5}"),
    ],
)
def test_what_is_no_code_is_refused(given: object, got: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_code(given)

    message = str(caught.value)
    assert message.startswith("code: expected whole numbers such as '5 5 6', ")
    assert got in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ((5, 5), "code: expected 3 whole numbers from 1 to 10, one a unit; got 2"),
        ((), "code: expected 3 whole numbers from 1 to 10, one a unit; got 0"),
        ((5, 0, 5), "code: number 2 (4x4): expected a whole number from 1 to 10, got 0"),
        ((5, 5, 11), "code: number 3 (1x1): expected a whole number from 1 to 10, got 11"),
        ((-1, 5, 5), "code: number 1 (8x8): expected a whole number from 1 to 10, got -1"),
        ((5.0, 5, 5), "code: number 1 (8x8): expected a whole number from 1 to 10, got 5.0"),
        ((True, 5, 5), "code: number 1 (8x8): expected a whole number from 1 to 10, got True"),
    ],
)
def test_codes_of_other_units_are_refused(code: tuple[int, ...], message: str) -> None:
    graph = graph_of()
    with pytest.raises(PlanError) as caught:
        units_by_stage(graph).widths(graph, code)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.ones((2, 3), np.int64), r"expected integers \[K, 4\], got int64 \[2, 3\]"),
        (np.ones(4, np.int64), r"expected integers \[K, 4\], got int64 \[4\]"),
        (np.ones((2, 4)), r"expected integers \[K, 4\], got float64"),
        (np.zeros((2, 4), np.int64), "expected each from 1 to 10"),
        (np.full((2, 4), 11), "expected each from 1 to 10"),
    ],
)
def test_matrices_of_codes_are_checked(codes: np.ndarray, message: str) -> None:
    graph = graph_of()
    with pytest.raises(ValueError, match=message):
        units_by_group(graph).width_matrix(graph, codes)


def test_units_are_consistent_and_of_this_network() -> None:
    with pytest.raises(ValueError, match="groups for each of 1 names, got 2"):
        Units(("a",), (("0",), ("1",)))
    with pytest.raises(ValueError, match="'0' gets its width twice"):
        Units(("a", "b"), (("0",), ("1", "0")))
    with pytest.raises(ValueError, match="'1' gets its width twice"):
        Units(("a",), (("1",),), (Following("1", 1, ()),))
    with pytest.raises(PlanError, match="'7': not a group of this network"):
        Units(("a",), (("7",),)).widths(graph_of(), (5,))


def test_the_caller_keeps_its_codes() -> None:
    graph, codes = graph_of(), np.full((1, 4), 5, np.int32)
    widths = units_by_group(graph).width_matrix(graph, codes)

    assert codes.tolist() == [[5, 5, 5, 5]]
    assert widths.tolist() == [[4, 3, 6, 5]]
