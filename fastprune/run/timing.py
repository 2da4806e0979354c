"""What a run measures of latency before it plans, and what it says of it afterwards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune.errors import BudgetError
from fastprune.files import write_json
from fastprune.graph import ChannelGraph, trace
from fastprune.latency import (
    Alignment,
    Clock,
    DeviceClock,
    LatencyOptions,
    Mode,
    alignment_of,
    hardly_faster,
    latency_range,
    profile,
    reasons,
)
from fastprune.methods import PruneOptions
from fastprune.run.checks import check_reachable
from fastprune.training import Progress

__all__ = ["latency_lines", "reachable_here", "settled", "why_slow"]

_ALIGNMENT = "alignment.json"


def settled(
    prune: PruneOptions,
    graph: ChannelGraph,
    clock: Clock,
    progress: Progress,
    work: Path | None = None,
) -> PruneOptions:
    """The options with a number for ``round_to: auto``.

    Args:
        prune: the options.
        graph: of the network.
        clock: what measures.
        progress: told of what was chosen.
        work: folder of a stage that keeps it, so that one that goes on has the same.
    """
    if prune.round_to != "auto":
        return prune
    file = None if work is None else work / _ALIGNMENT
    if file is not None and file.is_file():
        found = Alignment(**json.loads(file.read_text(encoding="utf-8")))
    else:
        found = alignment_of(graph, clock, progress)
        if file is not None:
            write_json(file, found._asdict())
    held = (
        ""
        if found.liked == found.round_to
        else (
            f": layers here like multiples of {found.liked}, but the narrowest group has too few "
            "channels for them"
        )
    )
    progress.note(f"fastprune: prune.round_to auto is {found.round_to}{held}")
    return prune.model_copy(update={"round_to": found.round_to})


def reachable_here(
    asked: PruneOptions,
    graph: ChannelGraph,
    network: Callable[[], nn.Module],
    clock: Clock,
    progress: Progress,
) -> str:
    """What each metric can be brought to, in one line: latency too, where a budget limits it.

    Args:
        asked: the options.
        graph: of the network.
        network: makes it, with any weights, for its latency.
        clock: what measures.
        progress: told of what ``auto`` is.

    Raises:
        BudgetError: the budget is out of reach or met already, so that training for it is in vain.
    """
    prune = settled(asked, graph, clock, progress)
    found = check_reachable(prune, graph)
    if "latency_ms" in (prune.budget or {}):
        found += f", {_check_latency(prune, network(), graph, clock)}"
    return found


def _check_latency(
    prune: PruneOptions, model: nn.Module, graph: ChannelGraph, clock: Clock
) -> str:
    try:
        return latency_range(
            model,
            graph,
            prune.budget or {},
            clock=clock,
            round_to=prune.multiple,
            min_channels=prune.min_channels,
            ratios=prune.ratios,
        )
    except BudgetError as error:
        raise BudgetError(f"prune.{error}") from None


def why_slow(
    unpruned: nn.Module,
    pruned: nn.Module,
    shape: Sequence[int],
    options: LatencyOptions,
    device: torch.device,
    progress: Progress,
) -> list[str]:
    """Why a pruned network is hardly faster, weightiest reason first; nothing where it is.

    Args:
        unpruned: the network before; any weights.
        pruned: and after.
        shape: of an image, ``[C, H, W]``.
        options: images at a time, and the mode.
        device: where.
        progress: shows the measuring.
    """
    clock, mode = DeviceClock(options, device), Mode(options.mode)
    example = torch.zeros(1, *shape)
    before, after = (_traced(model, example) for model in (unpruned, pruned))
    unpruned_ms, pruned_ms = clock.networks([unpruned, pruned], [example])
    kept = after.cost().macs / max(before.cost().macs, 1)
    if not hardly_faster(unpruned_ms, pruned_ms, kept):
        return []
    random = torch.randn(options.batch_size, *shape, generator=torch.Generator().manual_seed(0))
    ready = mode.prepare(copy.deepcopy(pruned).to(device))
    found = profile(ready, [mode.images(random.to(device))], device)
    widths = {
        layer.weight.rpartition(".")[0]: (layer.input_width, layer.output_width)
        for layer in before.layers
    }
    alignment = alignment_of(before, clock, progress)
    return [
        f"measured once more, {pruned_ms:.3g} ms of {unpruned_ms:.3g} with {kept:.0%} of the "
        f"MACs; {options.mode}, batch {options.batch_size}",
        *reasons(found, widths, alignment),
    ]


def _traced(model: nn.Module, example: torch.Tensor) -> ChannelGraph:
    like = next(iter(model.parameters()), example)
    return trace(model, example.to(like.device))


def latency_lines(notes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As `budget_lines` has them, for a limit on latency that a plan was made for."""
    found = notes.get("latency")
    if found is None:
        return []
    return [{"metric": "latency_ms", "limit": found["limit_ms"], "reached": found["reached_ms"]}]
