"""The second training epoch out of decoded images against decoding them with torchvision again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _interleave import compare
from _photographs import photographs

from fastprune.data import Feed, Files, InputPipeline, Placement, ResizedCrop
from fastprune.data._choice import open_pipeline

IMAGES, BATCH = 256, 64
PLACEMENT = Placement(channels_last=True)


def feed_of(source: Files, cache: Path) -> Feed:
    return Feed(
        source=source,
        indices=np.arange(len(source.paths)),
        transform=ResizedCrop(224, 256),
        augment=True,
        shuffle=True,
        batch_size=BATCH,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        seed=0,
        workers=0,
        cache=cache,
    )


def all_of(pipeline: InputPipeline) -> None:
    for _ in pipeline.epoch(1, placement=PLACEMENT):
        pass


def measure(benchmark: Any, gate: Callable[..., None], name: str, feed: Feed) -> None:
    ours, rival = open_pipeline(feed, "device"), open_pipeline(feed, "torchvision")
    # The first pass of both, which is not measured: the same parts of the same images.
    for (x, y), (wanted, labels) in zip(ours.epoch(1), rival.epoch(1), strict=True):
        assert (y == labels).all()
        assert 255 * (x - wanted).abs().mean() < 1
    found = compare(benchmark, lambda: all_of(ours), lambda: all_of(rival), rounds=5)
    gate(
        name,
        found,
        rival="torchvision, in one process",
        images=len(feed.indices),
        batch=BATCH,
        images_a_second=round(len(feed.indices) / found.ours.best),
    )


@pytest.mark.benchmark(timer=time.process_time)
def bench_second_pass(benchmark: Any, gate: Callable[..., None], tmp_path: Path) -> None:
    """CPU seconds, one thread each, so images a second and core."""
    (tmp_path / "images").mkdir()
    feed = feed_of(photographs(tmp_path / "images", IMAGES), tmp_path / "cache")
    measure(benchmark, gate, "data/store/second_pass", feed)


@pytest.mark.benchmark(timer=time.process_time)
def bench_second_pass_photographs(
    benchmark: Any, gate: Callable[..., None], tmp_path: Path
) -> None:
    """The same on photographs of ImageNet."""
    folder = Path(os.environ.get("FASTPRUNE_DATA", "")) / "imagenet-sample-256"
    if not folder.is_dir():
        pytest.skip("FASTPRUNE_DATA is not set: no real data")
    paths = sorted(str(path) for path in folder.rglob("*.*") if path.is_file())[:IMAGES]
    feed = feed_of(Files(tuple(paths), np.arange(len(paths))), tmp_path)
    measure(benchmark, gate, "data/store/second_pass_photographs", feed)
