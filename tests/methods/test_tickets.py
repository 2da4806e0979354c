"""What a round makes of given weights, for each variant."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastprune import models
from fastprune.graph import ChannelGraph, trace
from fastprune.methods._filter_scores import filter_scores
from fastprune.methods._tickets import Structure, Ticket, first_ticket, next_ticket
from fastprune.methods._weight_masks import Masks, live_weights
from fastprune.methods.lottery import LotteryOptions
from fastprune.testing import fill
from fastprune.testing.methods import TinyResidual
from fastprune.training import checkpoint

RATE = 0.5


def options(variant: str, **given: Any) -> LotteryOptions:
    return LotteryOptions.model_validate({"variant": variant, "rate": RATE, **given})


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, ChannelGraph]:
    """Filters of very different size, so that many of them lose all their weights."""
    model = fill(models.build("resnet20_cifar", depth=8, shortcut="B")).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 4:
                sizes = torch.logspace(-2, 0, len(weight))
                weight.mul_(sizes[torch.randperm(len(weight))].view(-1, 1, 1, 1))
    return model, trace(model, torch.zeros(1, 3, 32, 32))


def following(
    before: Structure, model: nn.Module, graph: ChannelGraph, how: LotteryOptions, number: int = 1
) -> Ticket:
    """A round after a training that left the weights of ``model`` where something stayed."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, mask in before.masks.items():
        state[name] *= mask

    def scores(masks: Masks) -> dict[str, Tensor]:
        return dict(filter_scores("magnitude", model, graph, tuple(masks), masks=masks))

    return next_ticket(before, state, number, graph, how, scores)


def rounds(
    model: nn.Module, graph: ChannelGraph, how: LotteryOptions, count: int
) -> list[tuple[Structure, Ticket]]:
    """Of each round what was there before it, and what it made."""
    found = []
    before = first_ticket(graph, how).left
    for number in range(1, count + 1):
        found.append((before, following(before, model, graph, how, number)))
        before = found[-1][1].left
    return found


def nothing(masks: Masks) -> bool:
    return not any(bool(mask.any()) for mask in masks.values())


def without(masks: Masks, others: Masks) -> Masks:
    return {name: mask & ~others[name] for name, mask in masks.items()}


def same(one: Masks, other: Masks) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def size(graph: ChannelGraph, how: LotteryOptions) -> int:
    return first_ticket(graph, how).left.remaining


def rows_of(graph: ChannelGraph, ticket: Ticket, name: str) -> list[int]:
    """The filters of a weight whose channels go at the end of the state, by loops over slots."""
    kept = ticket.left.plan.keep
    return [
        int(row)
        for group in graph.groups
        for slot in graph.group_slots(group)
        if slot.role == "out" and name in slot.parameters
        for row, channel in zip(slot.positions, slot.channels, strict=True)
        if channel not in kept.get(group.name, range(group.channels))
    ]


@pytest.mark.parametrize("first_conv", [False, True])
def test_imp_keeps_exactly_as_many_weights_and_none_of_use_to_nobody(
    network: tuple[nn.Module, ChannelGraph], first_conv: bool
) -> None:
    model, graph = network
    how = options("imp", first_conv=first_conv)
    weights = dict(model.named_parameters())

    for number, (before, ticket) in enumerate(rounds(model, graph, how, 4), 1):
        assert ticket.trained is ticket.left
        assert ticket.penalised == ticket.beside == {}
        after = ticket.left
        assert after.remaining == int(size(graph, how) * Fraction(1, 2) ** number)
        assert nothing(without(after.masks, before.masks))
        of_use = live_weights(after.plan, graph, after.masks)
        assert nothing(without(after.masks, of_use))
        least = min(weights[n].abs()[mask].min() for n, mask in after.masks.items() if mask.any())
        left_out = without({n: before.masks[n] & of_use[n] for n in of_use}, after.masks)
        most = max(weights[n].abs()[mask].max() for n, mask in left_out.items() if mask.any())
        assert most <= least
    assert sum(after.plan.widths().values()) < sum(graph.widths().values())


def test_refill_keeps_whole_filters_as_many_as_the_masks_are_worth(
    network: tuple[nn.Module, ChannelGraph],
) -> None:
    model, graph = network
    for fillback in (0.0, 0.25):
        how = options("refill", fillback_rate=fillback)
        for before, ticket in rounds(model, graph, how, 3):
            after = ticket.left
            assert ticket.trained is after
            assert ticket.penalised == ticket.beside == {}
            # Whatever neither reads nor writes a channel that is gone, and all of that.
            assert same(after.masks, live_weights(after.plan, graph, after.masks))
            live = torch.cat(
                [dict(model.named_parameters())[n][m].abs() for n, m in before.masks.items()]
            )
            least = live.sort(descending=True).values[int(before.remaining * RATE) - 1]
            for group in graph.groups:
                worth, dense = 0, 0
                for slot in graph.group_slots(group):
                    for name in slot.parameters:
                        if slot.role == "out" and name in before.masks:
                            mask = before.masks[name]
                            values = dict(model.named_parameters())[name].abs()
                            worth += int((mask & (values >= least)).sum())
                            dense += int(mask.sum())
                channels = before.plan.widths()[group.name]
                filters = Fraction(channels * worth, dense)
                wanted = int(filters + (channels - filters) * Fraction(str(fillback)))
                assert after.plan.widths()[group.name] == max(wanted, 1), group.name
        assert after.remaining < size(graph, how) // 4


@pytest.mark.parametrize(("variant", "cuts"), [("rst", "imp"), ("rsst", "refill")])
def test_what_is_penalised_is_what_would_have_been_cut(
    network: tuple[nn.Module, ChannelGraph], variant: str, cuts: str
) -> None:
    model, graph = network
    how = options(variant)
    for number, (before, ticket) in enumerate(rounds(model, graph, how, 3), 1):
        cut = following(before, model, graph, options(cuts), number)
        assert ticket.trained is before
        assert same(ticket.left.masks, cut.left.masks)
        assert ticket.left.plan == cut.left.plan
        if variant == "rst":
            assert same(ticket.penalised, without(before.masks, cut.left.masks))
            continue
        for name, mask in before.masks.items():
            expected = torch.zeros_like(mask)
            expected[rows_of(graph, ticket, name)] = True
            assert torch.equal(ticket.penalised[name], expected & mask), name
        # Filters that residual streams tie are gone from all that write to the stream.
        tied = [n for n in before.masks if n.endswith("conv2.weight")]
        assert any(len(rows_of(graph, ticket, name)) for name in tied)
    gone = sum(int(mask.sum()) for mask in ticket.penalised.values())
    assert 0 < gone < before.remaining


def test_beside_is_what_else_makes_the_channels_that_go() -> None:
    model = fill(TinyResidual()).eval()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    how = options("rsst")
    before = first_ticket(graph, how).left
    ticket = following(before, model, graph, how)
    kept = {name: set(channels) for name, channels in ticket.left.plan.keep.items()}
    stream = [c not in kept.get("stem", range(8)) for c in range(8)]
    middle = [c not in kept.get("conv1", range(8)) for c in range(8)]

    assert 0 < sum(stream) < 8
    assert 0 < sum(middle) < 8
    assert stream != middle
    expected = {
        "stem.weight": stream,
        **dict.fromkeys(("bn1.weight", "bn1.bias", "bn3.weight", "bn3.bias"), stream),
        **dict.fromkeys(("bn2.weight", "bn2.bias"), middle),
    }
    assert set(ticket.beside) == set(expected)
    for name, rows in expected.items():
        mask = ticket.beside[name]
        assert mask.shape == model.get_parameter(name).shape
        assert mask.flatten(1).all(1).tolist() == rows if mask.ndim > 1 else mask.tolist() == rows
        assert int(mask.sum()) == sum(rows) * (mask.numel() // 8)
    assert ticket.penalised["conv1.weight"].flatten(1).all(1).tolist() == middle
    assert ticket.penalised["conv2.weight"].flatten(1).all(1).tolist() == stream
    whole = following(before, model, graph, options("rsst", first_conv=True, ranking="layer"))
    assert "stem.weight" not in first_ticket(graph, how).left.masks
    assert set(ticket.beside) - set(ticket.penalised) == set(ticket.beside)
    assert set(whole.penalised) >= set(ticket.penalised)


def test_biases_of_convolutions_go_too() -> None:
    model = fill(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 2)
        )
    )
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    how = options("rsst")
    ticket = following(first_ticket(graph, how).left, model, graph, how)

    gone = ticket.penalised["2.weight"].flatten(1).all(1)
    assert 0 < int(gone.sum()) < 6
    assert set(ticket.beside) == {"2.bias"}
    assert torch.equal(ticket.beside["2.bias"], gone)


@pytest.mark.parametrize("variant", ["imp", "refill", "rst", "rsst"])
def test_a_ticket_goes_through_a_file(
    network: tuple[nn.Module, ChannelGraph], variant: str, tmp_path: Path
) -> None:
    model, graph = network
    ticket = rounds(model, graph, options(variant), 2)[-1][1]
    checkpoint.write(tmp_path / "ticket.pt", ticket.state_dict())
    again = Ticket.of(checkpoint.read(tmp_path / "ticket.pt"))

    for one, other in ((ticket.trained, again.trained), (ticket.left, again.left)):
        assert same(one.masks, other.masks)
        assert one.plan == other.plan
    assert same(ticket.penalised, again.penalised)
    assert same(ticket.beside, again.beside)


@pytest.mark.parametrize("variant", ["imp", "refill", "rst", "rsst"])
def test_layer_by_layer_each_loses_its_own_share(
    network: tuple[nn.Module, ChannelGraph], variant: str
) -> None:
    model, graph = network
    spared = ("conv2.weight", "shortcut.0.weight")
    how = options(variant, ranking="layer", layer_rates={f"*{name}": 0 for name in spared})
    before = first_ticket(graph, how).left
    left = following(before, model, graph, how).left

    if variant in ("imp", "rst"):
        # Weights that read a channel that is gone go whatever their layer's share.
        of_use = live_weights(left.plan, graph, left.masks)
        for name, mask in left.masks.items():
            share = 1 if name.endswith(spared) else RATE
            expected = min(int(mask.numel() * share), int(of_use[name].sum()))
            assert int(mask.sum()) == expected, name
        return
    for group in graph.groups:
        # Only spared convolutions and the first one write to the streams.
        share = RATE if group.name.endswith(".conv1") else 1
        assert left.plan.widths()[group.name] == int(share * group.channels), group.name


def test_rst_shrinks_what_is_behind_a_channel_whose_last_weight_goes() -> None:
    model = fill(TinyResidual()).eval()
    with torch.no_grad():
        model.conv1.weight[3] *= 1e-6
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    how = options("rst")
    ticket = following(first_ticket(graph, how).left, model, graph, how)

    assert 3 not in ticket.left.plan.keep["conv1"]
    assert ticket.penalised["conv1.weight"][3].all()
    assert ticket.beside.keys() == {"bn2.weight", "bn2.bias"}
    assert ticket.beside["bn2.weight"].nonzero().flatten().tolist() == [3]
