"""Whole lottery tickets on a tiny network and a few digits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import user_networks
from lottery_runs import (
    TRAIN,
    VARIANTS,
    context_of,
    copied,
    few_digits,
    held,
    in_whole,
    options_of,
    same,
    spied,
    tickets,
)
from torch import nn

from fastprune import data
from fastprune.artifact import load_state, restore, save_state
from fastprune.errors import CheckpointError
from fastprune.graph import apply_plan, trace
from fastprune.methods import MethodContext, MethodResult
from fastprune.methods import lottery as method
from fastprune.methods._lottery_files import BestEpoch
from fastprune.methods._states import StateRecord, read_states, write_states
from fastprune.methods._tickets import Ticket
from fastprune.methods._weight_masks import live_weights
from fastprune.methods.lottery import lottery
from fastprune.models import build
from fastprune.training import EpochRecord, FitResult, evaluate, fit


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return few_digits()


@pytest.mark.parametrize("start", ["lt", "rewind_lt", "pt"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_ticket_from_begin_to_end(
    variant: str,
    start: str,
    tmp_path: Path,
    splits: data.Splits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = options_of(variant, start=start)
    context = context_of(tmp_path, options, splits)
    before, seen = copied(context.model), spied(monkeypatch, tmp_path)
    result = lottery(context, options)

    assert same(copied(context.model), before)
    # The weights to begin with: what they should be, and the same file all along.
    rewind = load_state(tmp_path / "rewind.safetensors")
    expected = {"lt": copied(context.fresh(0)), "rewind_lt": seen.epochs[0], "pt": before}[start]
    assert same(dict(sorted(rewind.items())), dict(sorted(expected.items())))
    assert set(seen.rewinds) == {result.notes["rewind_sha256"]}
    assert len(seen.rewinds) == (5 if start == "rewind_lt" else 6)
    whole = {"lt": expected, "rewind_lt": copied(context.fresh(0)), "pt": before}[start]
    assert same(seen.begun[0], whole)
    found = tickets(tmp_path, context, options)
    for number, ticket in enumerate(found):
        begun = in_whole(seen.begun[number], ticket.trained, context)
        if number:
            for name, mask in ticket.trained.masks.items():
                assert torch.equal(begun[name], rewind[name] * mask), name
        kept = context.graph.kept(ticket.trained.plan)
        if kept.all():
            left = {n: t for n, t in begun.items() if n not in ticket.trained.masks}
            assert number == 0 or all(torch.equal(t, rewind[n]) for n, t in left.items())
        # Masked weights are exactly zero, all others are not, trained or penalised as they are.
        assert held(in_whole(seen.ended[number], ticket.trained, context), ticket.trained)
        saved = load_state(tmp_path / f"states/state-{number:02}.safetensors")
        assert held(in_whole(saved, ticket.left, context), ticket.left)

    records = read_states(tmp_path / "states.jsonl")
    check_records(records, found, tmp_path, context, variant)
    assert result.plan == found[-1].left.plan
    assert result.pruned_state is not None
    assert same(result.pruned_state, load_state(tmp_path / "states/state-02.safetensors"))
    assert result.notes["remaining_weights"] == records[-1].remaining_weights
    assert result.notes["states"] == 3


def check_records(
    records: tuple[StateRecord, ...],
    found: list[Ticket],
    folder: Path,
    context: MethodContext,
    variant: str,
) -> None:
    """That each line tells what is in the file of its state."""
    total = found[0].left.remaining
    for number, (record, ticket) in enumerate(zip(records, found, strict=True)):
        assert record.state == number
        assert record.prunable_weights == total
        if variant in ("imp", "rst"):
            assert record.remaining_weights == int(total * Fraction(7, 10) ** number)
        else:
            masks = live_weights(ticket.left.plan, context.graph, ticket.left.masks)
            assert record.remaining_weights == sum(int(mask.sum()) for mask in masks.values())
        small = apply_plan(
            context.fresh(0), context.graph, ticket.left.plan, allow_unchanged=True
        ).eval()
        state = load_state(folder / f"states/state-{number:02}.safetensors")
        restore(small, state)
        ones = sum(int((state[name] != 0).sum()) for name in ticket.left.masks)
        assert record.remaining_weights == ones
        cost = trace(small, context.example).cost()
        assert record.macs == cost.macs
        assert record.params == sum(p.numel() for p in small.parameters())
        assert record.channels == cost.channels
        assert record.full_channels == context.graph.cost().channels
        assert record.widths == ticket.left.plan.widths()
        measured = {
            name: evaluate(small, part, device="cpu").top1
            for name, part in context.splits.parts.items()
        }
        assert record.test_top1 == measured["test"]
        penalised = number > 0 and variant in ("rst", "rsst")
        assert (record.cut_top1, record.strengths == ()) == (
            (measured["validation"], False) if penalised else (None, True)
        )
        if not penalised:
            assert record.penalised_norm is None
            assert record.validation_top1 == measured["validation"]
        else:
            assert record.penalised_norm is not None
            assert record.penalised_norm > 0
            assert [epoch for epoch, _ in record.strengths] == [1, 2]
        assert record.best_validation_top1 is not None
        assert record.validation_top1 is not None
        assert record.best_validation_top1 >= record.validation_top1
        assert record.seconds > 0


def test_state_0_that_is_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, splits: data.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of("imp", pruning_times=1)
    lottery(context_of(tmp_path / "whole", options, splits), options)

    def killed(model: nn.Module, splits: data.Splits, recipe: Any, **given: Any) -> FitResult:
        after = given["after_epoch"]

        def after_epoch(record: EpochRecord) -> None:
            after(record)
            raise KeyboardInterrupt

        return fit(model, splits, recipe, **given | {"after_epoch": after_epoch})

    with monkeypatch.context() as patched:
        patched.setattr(method, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            lottery(context_of(tmp_path / "killed", options, splits), options)
    assert (tmp_path / "killed/rewind.safetensors").is_file()
    assert not list((tmp_path / "killed/state-00").glob("*.pt"))
    lottery(context_of(tmp_path / "killed", options, splits), options)

    for name in ("rewind.safetensors", *(f"states/state-0{n}.safetensors" for n in (0, 1))):
        both = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "killed")]
        assert both[0] == both[1], name


@pytest.mark.parametrize("start", ["lt", "rewind_lt"])
def test_weights_that_were_changed_are_not_gone_on_with(
    start: str, tmp_path: Path, splits: data.Splits
) -> None:
    options = options_of("refill", start=start, pruning_times=1)
    whole = tmp_path / "whole"
    context = context_of(whole, options, splits)
    result = lottery(context, options)
    assert lottery(context, options).notes == result.notes
    for number, name in enumerate(
        ("rewind.safetensors", "states/state-00.safetensors", "states/state-01.safetensors")
    ):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        if number == 0:
            # State 1 is yet to be trained.
            write_states(folder / "states.jsonl", read_states(whole / "states.jsonl")[:1])
            shutil.rmtree(folder / "state-01")
        kept = load_state(folder / name)
        save_state(folder / name, {key: tensor * 2 for key, tensor in kept.items()})
        with pytest.raises(CheckpointError, match=f"{name}: missing, or not what was written"):
            lottery(context_of(folder, options, splits), options)
        save_state(folder / name, kept)
        assert lottery(context_of(folder, options, splits), options).notes == result.notes
        (folder / "digests.json").write_text("{")
        with pytest.raises(CheckpointError, match="not what was written"):
            lottery(context_of(folder, options, splits), options)


@pytest.mark.parametrize("content", ['{"validation_to', "{}", "[]", '{"validation_top1": null}'])
def test_a_damaged_best_epoch_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"best.json: damaged; --fresh-search"):
        BestEpoch(tmp_path / "best.safetensors").top1  # noqa: B018


def test_initial_weights_without_their_digest_are_written_again(
    tmp_path: Path, splits: data.Splits
) -> None:
    # As a kill between the two leaves them.
    options = options_of("refill", start="lt", pruning_times=1)
    context = context_of(tmp_path, options, splits)
    (tmp_path / "rewind.safetensors").write_bytes(b"half")
    assert lottery(context, options).notes["states"] == 2


def untrained(model: nn.Module, splits: data.Splits, options: Any, **given: Any) -> FitResult:
    return FitResult(0, 0, False, None, ())


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_each_state_or_at_the_end_it_is_the_same_function(
    variant: str, tmp_path: Path, splits: data.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = next(iter(splits.test.epoch(0)))[0].double()
    nets: dict[bool, list[nn.Module]] = {}
    for cut in (True, False):
        folder = tmp_path / str(cut)
        options = options_of(variant, start="pt", prune_each_state=cut, pruning_times=3)
        context = context_of(folder, options, splits)
        with torch.no_grad():
            # Filters that lose all their weights.
            context.model.get_parameter("conv1.weight")[2:5] *= 1e-3
        with monkeypatch.context() as patched:
            seen = spied(patched, folder, untrained)
            lottery(context, options)
        nets[cut] = seen.nets
    sizes = [
        [sum(p.numel() for p in net.parameters()) for net in nets[cut]] for cut in (True, False)
    ]
    assert sizes[0][-1] < sizes[0][0]
    assert len(set(sizes[1])) == 1
    for small, masked in zip(*nets.values(), strict=True):
        with torch.no_grad():
            got, expected = (net.double().eval()(images) for net in (small, masked))
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    for number in range(4):
        name = f"states/state-{number:02}.safetensors"
        one, other = (load_state(tmp_path / str(cut) / name) for cut in (True, False))
        assert same(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_each_state_or_at_the_end_it_trains_to_nearly_the_same(
    variant: str, tmp_path: Path, splits: data.Splits
) -> None:
    for cut in (True, False):
        options = options_of(variant, start="lt", prune_each_state=cut, pruning_times=2)
        lottery(context_of(tmp_path / str(cut), options, splits), options)
    one, other = (read_states(tmp_path / str(cut) / "states.jsonl") for cut in (True, False))
    assert [r.widths for r in one] == [r.widths for r in other]
    for number in range(3):
        name = f"states/state-{number:02}.safetensors"
        states = [load_state(tmp_path / str(cut) / name) for cut in (True, False)]
        for key, tensor in states[0].items():
            torch.testing.assert_close(tensor, states[1][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "params", "variant"),
    [
        ("TutorialResNet32", 472_756, "rsst"),
        ("CustomVGG", None, "rst"),
        ("CustomVGG", None, "rsst"),
        ("custom_vgg_with_hidden_layer", None, "refill"),
    ],
)
def test_a_users_network_goes_through_it_whole(
    name: str, params: int | None, variant: str, tmp_path: Path
) -> None:
    file = Path(user_networks.__file__)

    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(f"{file}:{name}", num_classes=100 if params else 10)

    splits = data.load(data.DataOptions(train_limit=16, test_limit=8, batch_size=8), 0)
    options = options_of(variant, start="lt", pruning_times=1, train=TRAIN | {"epochs": 1})
    model = fresh(0).eval()
    context = replace(
        context_of(tmp_path, options, splits),
        model=model,
        graph=trace(model, torch.zeros(1, 3, 32, 32)),
        fresh=fresh,
    )
    result: MethodResult = lottery(context, options)
    first, last = read_states(tmp_path / "states.jsonl")

    assert first.params == sum(p.numel() for p in model.parameters())
    assert params is None or first.params == params
    small = apply_plan(result.model, context.graph, result.plan, allow_unchanged=True)
    assert result.pruned_state is not None
    restore(small, result.pruned_state)
    assert sum(p.numel() for p in small.parameters()) == last.params
    if variant == "rst":
        assert last.remaining_weights == int(first.remaining_weights * Fraction(7, 10))
    else:
        assert last.params < first.params
        assert all(last.widths[n] < first.widths[n] for n in last.widths if "conv" in n)
