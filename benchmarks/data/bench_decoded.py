"""The second pass over decoded evaluation images against decoding them with torchvision again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _interleave import compare
from _photographs import photographs

from fastprune.data import Feed, Files, InputPipeline, Placement, ResizedCrop
from fastprune.data._choice import open_pipeline
from fastprune.data._decoded import open_decoded

IMAGES, BATCH = 256, 64
PLACEMENT = Placement(channels_last=True)


def feed_of(source: Files, cache: Path) -> Feed:
    return Feed(
        source=source,
        indices=np.arange(len(source.paths)),
        transform=ResizedCrop(224, 256),
        augment=False,
        shuffle=False,
        batch_size=BATCH,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        seed=0,
        workers=0,
        cache=cache,
    )


def all_of(pipeline: InputPipeline) -> None:
    for _ in pipeline.epoch(0, placement=PLACEMENT):
        pass


def check(ours: InputPipeline, rival: InputPipeline) -> None:
    """The first pass of both, which is not measured: the same batches."""
    both = zip(
        ours.epoch(0, placement=PLACEMENT), rival.epoch(0, placement=PLACEMENT), strict=True
    )
    for (x, y), (wanted, labels) in both:
        assert torch.equal(x, wanted)
        assert torch.equal(y, labels)


def measure(benchmark: Any, gate: Callable[..., None], name: str, feed: Feed) -> None:
    ours, rival = open_decoded(feed), open_pipeline(feed, "torchvision")
    check(ours, rival)
    found = compare(benchmark, lambda: all_of(ours), lambda: all_of(rival), rounds=7)
    total = sum(Path(path).stat().st_size for path in feed.source.paths)  # type: ignore[union-attr]
    gate(
        name,
        found,
        rival="torchvision, in one process",
        images=len(feed.indices),
        batch=BATCH,
        jpeg_kb=round(total / len(feed.indices) / 1e3, 1),
        images_a_second=round(len(feed.indices) / found.ours.best),
    )


@pytest.mark.benchmark(timer=time.process_time)
def bench_second_pass(benchmark: Any, gate: Callable[..., None], tmp_path: Path) -> None:
    """CPU seconds, one thread each, so images a second and core."""
    (tmp_path / "images").mkdir()
    feed = feed_of(photographs(tmp_path / "images", IMAGES), tmp_path / "cache")
    measure(benchmark, gate, "data/decoded/second_pass", feed)


@pytest.mark.benchmark(timer=time.perf_counter)
def bench_second_pass_against_workers(
    benchmark: Any, gate: Callable[..., None], tmp_path: Path
) -> None:
    """Seconds that a user waits: two threads against two worker processes."""
    (tmp_path / "images").mkdir()
    torch.set_num_threads(2)
    feed = feed_of(photographs(tmp_path / "images", IMAGES), tmp_path / "cache")
    ours = open_decoded(feed)
    rival = open_pipeline(replace(feed, workers=2), "torchvision")
    check(ours, rival)
    found = compare(
        benchmark,
        lambda: all_of(ours),
        lambda: all_of(rival),
        rounds=7,
        timer=time.perf_counter,
    )
    rival.close()
    gate("data/decoded/second_pass_workers", found, rival="torchvision, 2 workers", batch=BATCH)


@pytest.fixture
def sample() -> Path:
    """The folder of real JPEGs."""
    folder = Path(os.environ.get("FASTPRUNE_DATA", "")) / "imagenet-sample-256"
    if not folder.is_dir():
        pytest.skip("FASTPRUNE_DATA is not set: no real data")
    return folder


@pytest.mark.benchmark(timer=time.process_time)
def bench_second_pass_photographs(
    benchmark: Any, gate: Callable[..., None], sample: Path, tmp_path: Path
) -> None:
    """The same on photographs of ImageNet."""
    paths = sorted(str(path) for path in sample.rglob("*.*") if path.is_file())[:IMAGES]
    feed = feed_of(Files(tuple(paths), np.arange(len(paths))), tmp_path)
    measure(benchmark, gate, "data/decoded/second_pass_photographs", feed)
