"""What a run found, as plain data."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastprune.config import RunConfig
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.graph.units import map_sizes
from fastprune.latency import Mode, hardly_faster, seconds_of
from fastprune.run.stages import StageRecord
from fastprune.run.timing import why_slow
from fastprune.training.progress import SilentProgress

__all__ = [
    "accuracy_names",
    "build_report",
    "channel_facts",
    "interleaved_latency",
    "left_out",
    "narrowest_groups",
    "steady_warning",
]

_WARM_UP = 3
_STEADY = 0.25
"""Spread from which on a latency is worth little."""

_SHOWN = 8


def build_report(
    facts: Mapping[str, Any],
    *,
    config: RunConfig,
    records: Mapping[str, StageRecord],
    graph: ChannelGraph,
    plan: PruningPlan,
    unpruned: nn.Module,
    pruned: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    focus: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The content of report.json; all but latency, seconds, kills and warnings repeats exactly.

    Args:
        facts: that every report has, `StagedRun.facts`.
        config: of the run.
        records: of its stages.
        graph: of the unpruned network.
        plan: by which it was pruned.
        unpruned: that network.
        pruned: the one it became.
        shape: of an image, ``[C, H, W]``.
        device: where latency is measured.
        focus: accuracies of the classes that the network is for, where it is for some.
    """
    full, small = graph.cost().to_dict(), records["prune"].results["cost"]
    latency = None
    if config.latency.repeats:
        latency = interleaved_latency(
            unpruned,
            pruned,
            (config.latency.batch_size, *shape),
            device,
            repeats=config.latency.repeats,
            mode=config.latency.mode,
        )
        before, after = latency["unpruned_ms"], latency["pruned_ms"]
        slow = hardly_faster(before, after, small["macs"] / max(full["macs"], 1))
        latency["why"] = (
            why_slow(unpruned, pruned, shape, config.latency, device, SilentProgress())
            if slow
            else []
        )
    return {
        **facts,
        "accuracy": {
            "baseline": records["baseline"].results["metrics"],
            "trained_by_method": records["plan"].results["metrics"],
            "pruned": records["prune"].results["metrics"],
            "finetuned": records["finetune"].results["metrics"],
        },
        "cost": {
            "unpruned": full,
            "pruned": small,
            "kept": {name: round(small[name] / full[name], 6) for name in full if full[name]},
        },
        "budget": records["prune"].results["budget"],
        "oracle": records["prune"].results["oracle"],
        "latency": latency,
        "narrowest": narrowest_groups(graph, plan),
        "widths": records["prune"].results["widths"],
        "unprunable": [
            {"name": row.name, "channels": row.channels, "reason": row.reason}
            for row in graph.unprunable
        ],
        "notes": records["plan"].results["notes"],
        "focus": focus,
        "warnings": [*_warnings(latency), *facts["warnings"]],
    }


def interleaved_latency(
    unpruned: nn.Module,
    pruned: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    *,
    repeats: int,
    mode: str = "eager",
) -> dict[str, Any]:
    """Median milliseconds of a forward pass of both networks, taken in turns on this device.

    In turns, since the speed of a shared machine changes from second to second, for both alike.
    On one CPU thread they are its CPU time, see `fastprune.latency.seconds_of`.
    """
    inputs = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)).to(device)
    networks = {"unpruned": unpruned.eval(), "pruned": pruned.eval()}
    if mode != "eager":
        inputs = Mode(mode).images(inputs)
        networks = {k: Mode(mode).prepare(copy.deepcopy(n)) for k, n in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(_WARM_UP + repeats):
            for name, network in networks.items():
                took = seconds_of(lambda network=network: network(inputs), device)  # type: ignore[misc]
                if turn >= _WARM_UP:
                    times[name].append(1e3 * took)
    before, after = (statistics.median(times[name]) for name in networks)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": shape[0],
        "mode": mode,
        "repeats": repeats,
        "unpruned_ms": round(before, 4),
        "pruned_ms": round(after, 4),
        "speedup": round(before / after, 3),
        "spread": round(max(_spread(found) for found in times.values()), 3),
    }


def _spread(times: Sequence[float]) -> float:
    """Distance between the quartiles as a share of the median."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (1.0, 1.0, 1.0)
    return (high - low) / middle


def _warnings(latency: Mapping[str, Any] | None) -> list[str]:
    if latency is None:
        return []
    found = []
    if latency["speedup"] <= 1:
        found.append(
            f"the pruned network is not faster on this device "
            f"({latency['pruned_ms']} ms, unpruned {latency['unpruned_ms']} ms)"
        )
    found += [f"hardly faster: {reason}" for reason in latency["why"]]
    return found + steady_warning(latency["spread"], "latency.repeats")


def steady_warning(spread: float, option: str) -> list[str]:
    """A line where measured times scatter too much; none where they do not.

    Args:
        spread: distance between their quartiles as a share of the median.
        option: of the configuration, that takes more of them.
    """
    if spread <= _STEADY:
        return []
    return [
        f"half of the measured times differ by {spread:.0%} of their median, so the latencies are "
        f"rough: something else is using this machine; {option} takes more of them"
    ]


def left_out(records: Mapping[str, StageRecord]) -> list[str]:
    """A line on image files that could not be read; none where there are none."""
    names = sorted({name for record in records.values() for name in record.bad_images})
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return [f"{len(names)} image files could not be read and were left out: {shown}"]


def narrowest_groups(graph: ChannelGraph, plan: PruningPlan) -> list[dict[str, Any]]:
    """The layer with the smallest share of its channels left, for each size of feature maps."""
    sizes = map_sizes(graph)
    found: dict[str, dict[str, Any]] = {}
    widths = plan.widths()
    for group in graph.groups:
        size = sizes.get(group.name)
        kept = widths.get(group.name, group.channels)
        row = {"maps": size, "group": group.name, "kept": kept, "of": group.channels}
        best = found.get(size) if size is not None else None
        if size is not None and (
            best is None or kept / group.channels < best["kept"] / best["of"]
        ):
            found[size] = row
    return list(found.values())


def channel_facts(graph: ChannelGraph) -> dict[str, Any]:
    """The groups of a network, and what cannot be pruned and why; plain data."""
    return {
        "groups": [
            {"name": group.name, "channels": group.channels, "kind": group.kind}
            for group in graph.groups
        ],
        "unprunable": [
            {"name": row.name, "channels": row.channels, "reason": row.reason}
            for row in graph.unprunable
        ],
    }


def accuracy_names(method: str, notes: Mapping[str, Any]) -> dict[str, str]:
    """What the accuracies of a report are of, in words."""
    fresh = notes.get("weights") == "fresh"
    return {
        "baseline": "baseline",
        "trained_by_method": f"trained by {method}",
        "pruned": "pruned, new weights" if fresh else "pruned",
        "finetuned": "trained" if fresh else "fine-tuned",
    }
