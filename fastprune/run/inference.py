"""Split inference of a fusion: its accuracy, and how long each part takes."""

from __future__ import annotations

import copy
import csv
import io
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune import data
from fastprune.data import DataOptions
from fastprune.errors import ConfigError
from fastprune.files import write_atomically
from fastprune.run.fusion import fused_data
from fastprune.run.fusion_file import (
    Fusion,
    load_fusion,
    open_head,
    openers,
    weight_of,
)
from fastprune.run.networks import device_of
from fastprune.run.paths import INFERENCE, make_folder
from fastprune.training import Metrics, Progress, evaluate
from fastprune.training.progress import SilentProgress
from fastprune.training.split import SplitNetwork, SplitPart

__all__ = ["Inference", "PartRow", "infer"]

_WARM_UP = 3
_LONGEST = 10.0
"""Seconds after which a batch size is left, once it was measured often enough."""
_FEWEST = 5


@dataclass(frozen=True, slots=True)
class PartRow:
    """A line of ``inference.csv``.

    Attributes:
        part: ``expert 0``, ``expert 1``, … each while the others rest; ``slowest expert``, of each
            turn's; ``head``; ``slowest + head``, what the whole takes where every expert has a
            device to itself and sending costs nothing; ``whole``, from images to logits with all
            experts at once, as it was on this machine; ``exchange``, the part of it that is
            neither the slowest expert nor the head; ``unpruned``, the network before pruning.
        device: where it ran.
        threads: CPU threads of each process.
        params: parameters of what runs there, an expert's without its head; 0 for ``exchange``.
        size_mb: bytes of its parameters and buffers / 10^6.
        batch: images at a time.
        repeats: how often it was measured.
        median_ms: milliseconds a batch.
        low_ms: the quarter of the times below it.
        high_ms: the quarter of the times above it.
        image_ms: ``median_ms`` / ``batch``.
    """

    part: str
    device: str
    threads: int
    params: int
    size_mb: float
    batch: int
    repeats: int
    median_ms: float
    low_ms: float
    high_ms: float
    image_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, by the names of the columns."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Inference:
    """What split inference found.

    Attributes:
        test: accuracy over all test images; that which fusing found, to the last digit, where
            the devices are of the same kind.
        rows: what each part took.
        file: the CSV of them.
    """

    test: Metrics
    rows: tuple[PartRow, ...]
    file: Path


def infer(
    fusion: Path,
    *,
    data_options: DataOptions | None = None,
    devices: Sequence[str] = ("cpu",),
    threads: int = 1,
    batches: Sequence[int] | None = None,
    repeats: int = 30,
    unpruned: nn.Module | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Inference:
    """Runs every expert in a process of its own, and writes ``inference.csv``.

    Parts are measured in turns, since the speed of a shared machine changes from second to second.

    Args:
        fusion: folder of ``fusion.json``.
        data_options: the images, by default those it was fused on; their normalisation and
            batches are the fusion's.
        devices: of each expert, or one for all of them: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
            The head and the unpruned network run on the first.
        threads: CPU threads of each process.
        batches: images at a time to measure with; by default 1 and the fusion's own.
        repeats: turns that are measured, at least 2; after ten seconds five are enough.
        unpruned: a network to compare with; it is left where and as it is.
        out: folder for ``inference.csv``; by default the fusion's.
        progress: shows how far it is.

    Raises:
        ArtifactError: an expert or the head is missing, or another than was fused.
        ConfigError: a number of devices that is neither one nor that of the experts, or a device
            that is not there.
        TrainingError: a process was killed.
    """
    told = progress or SilentProgress()
    found = load_fusion(fusion)
    places = _places(devices, len(found.experts))
    sizes = tuple(batches) if batches is not None else (1, found.batch_size)
    if threads < 1 or repeats < 2 or not sizes or min(sizes) < 1:
        raise ConfigError(
            f"expected threads from 1, repeats from 2 and batches from 1 on; got {threads}, "
            f"{repeats} and {list(sizes)}"
        )
    file = (out or found.folder) / INFERENCE
    make_folder(file.parent)
    parts = [
        SplitPart(f"{number}, {saved.stem}", saved.features, str(place), opener)
        for number, (saved, place, opener) in enumerate(
            zip(found.experts, places, openers(found), strict=True)
        )
    ]
    head = open_head(found).to(places[0])
    pipeline, _ = data.load_test(fused_data(found, data_options))
    network = SplitNetwork(
        parts,
        head,
        input_shape=found.input_shape,
        batch_size=max(*sizes, found.batch_size),
        threads=threads,
    )
    try:
        with network, _threads(threads):
            # An exchange between processes cannot be a CUDA graph.
            test = evaluate(
                network,
                pipeline,
                device=places[0],
                capture=False,
                progress=told,
                name="split inference",
            )
            rows = _measured(network, found, places, threads, sizes, repeats, unpruned, told)
    finally:
        pipeline.close()
    write_atomically(file, _csv(rows))
    return Inference(test, rows, file)


def _places(devices: Sequence[str], experts: int) -> list[torch.device]:
    if len(devices) not in (1, experts):
        raise ConfigError(
            f"devices: expected one for all or one for each of the {experts} experts, got "
            f"{len(devices)}"
        )
    given = devices if len(devices) == experts else [devices[0]] * experts
    return [device_of(name) for name in given]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch with so many CPU threads inside, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measured(
    network: SplitNetwork,
    fusion: Fusion,
    places: Sequence[torch.device],
    threads: int,
    sizes: Sequence[int],
    repeats: int,
    unpruned: nn.Module | None,
    told: Progress,
) -> tuple[PartRow, ...]:
    """The rows of every batch size, its parts measured in turns."""
    whole = None if unpruned is None else copy.deepcopy(unpruned).to(places[0]).eval()
    rows: list[PartRow] = []
    with told.start("latency", len(sizes) * (_WARM_UP + repeats), "turns") as task:
        for size in sizes:
            draws = torch.Generator().manual_seed(0)
            x = torch.randn(size, *fusion.input_shape, generator=draws)
            turns: list[dict[str, float]] = []
            begun = time.monotonic()
            for turn in range(_WARM_UP + repeats):
                found = _turn(network, len(places), x, whole, places[0])
                if turn >= _WARM_UP:
                    turns.append(found)
                task.advance(1)
                if len(turns) >= _FEWEST and time.monotonic() - begun > _LONGEST:
                    break
            # ``repeats`` of a row says how many there were.
            about = _about(fusion, network, places, whole)
            rows += [_row(part, *about[part], threads, size, turns) for part in turns[0]]
    return tuple(rows)


def _turn(
    network: SplitNetwork,
    experts: int,
    x: torch.Tensor,
    unpruned: nn.Module | None,
    device: torch.device,
) -> dict[str, float]:
    """Seconds of each part, once."""
    alone = [network.expert_seconds(number, x) for number in range(experts)]
    with torch.no_grad():
        _, times = network.timed(x)
    found = {f"expert {number}": seconds for number, seconds in enumerate(alone)}
    found["slowest expert"] = max(alone)
    found["head"] = times.head
    found["slowest + head"] = max(alone) + times.head
    found["whole"] = times.whole
    found["exchange"] = times.whole - max(times.experts) - times.head
    if unpruned is not None:
        begun = time.perf_counter()
        with torch.no_grad():
            # To the host, as the fused network's features go: it waits for the device.
            unpruned(x.to(device)).cpu()
        found["unpruned"] = time.perf_counter() - begun
    return found


def _about(
    fusion: Fusion,
    network: SplitNetwork,
    places: Sequence[torch.device],
    unpruned: nn.Module | None,
) -> dict[str, tuple[str, int, float]]:
    """Device, parameters and megabytes of each part."""
    experts = [(saved.params, saved.size_mb) for saved in fusion.experts]
    head, first = weight_of(network.head), str(places[0])
    every = ", ".join(dict.fromkeys(str(place) for place in places))
    params, size = (sum(part) for part in zip(*experts, head, strict=True))
    largest = max(experts)
    about: dict[str, tuple[str, int, float]] = {
        f"expert {number}": (str(place), *weight)
        for number, (place, weight) in enumerate(zip(places, experts, strict=True))
    }
    return about | {
        "slowest expert": (every, *largest),
        "head": (first, *head),
        "slowest + head": (every, largest[0] + head[0], largest[1] + head[1]),
        "whole": (every, int(params), size),
        "exchange": (every, 0, 0.0),
        "unpruned": (first, *(weight_of(unpruned) if unpruned is not None else (0, 0.0))),
    }


def _row(
    part: str,
    device: str,
    params: int,
    size_mb: float,
    threads: int,
    batch: int,
    turns: Sequence[dict[str, float]],
) -> PartRow:
    low, median, high = statistics.quantiles([1e3 * turn[part] for turn in turns], n=4)
    return PartRow(
        part=part,
        device=device,
        threads=threads,
        params=params,
        size_mb=round(size_mb, 6),
        batch=batch,
        repeats=len(turns),
        median_ms=round(median, 4),
        low_ms=round(low, 4),
        high_ms=round(high, 4),
        image_ms=round(median / batch, 5),
    )


def _csv(rows: Sequence[PartRow]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(PartRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_dict() for row in rows)
    return text.getvalue().encode()
