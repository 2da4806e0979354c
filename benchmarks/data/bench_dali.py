"""The DALI pipeline on a CPU against torchvision's with two workers, over JPEG files.

Held is the CPU time of all processes and threads of a side: both keep two cores busy, and unlike a
clock on the wall it does not count the machine's other work. The wall's times are facts beside it.

Files are generated, or real ones of FASTPRUNE_DATA where that is set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _interleave import compare
from PIL import Image

from fastprune.data import Feed, Files, ResizedCrop
from fastprune.data._choice import open_pipeline

IMAGES, BATCH, CORES = 512, 64, 2


def all_cpu_seconds() -> float:
    """CPU seconds of this process, of its children that live, and of those that ended."""
    times = os.times()
    seconds = time.process_time() + times.children_user + times.children_system
    ticks = os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / ticks
    return seconds


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """JPEG files whose shorter side has 256 pixels."""
    place = os.environ.get("FASTPRUNE_DATA")
    if place:
        found = sorted(Path(place, "imagenet-sample-256").glob("*/*"))[:IMAGES]
        return Files(tuple(map(str, found)), np.arange(len(found)))
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    paths = []
    for i in range(IMAGES):
        size = ((341, 256), (256, 341), (384, 256), (256, 256))[i % 4]
        # Shapes and grain, so that a file has as many bytes as one of a photograph: some 30,000.
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        grain = generator.normal(0, 6, image.shape[:2])[..., None]
        path = folder / f"{i}.jpg"
        Image.fromarray((image + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
        paths.append(str(path))
    return Files(tuple(paths), np.arange(IMAGES))


@pytest.mark.benchmark(timer=all_cpu_seconds)
@pytest.mark.parametrize("what", ["training", "evaluation"])
def bench_dali(what: str, photographs: Files, benchmark: Any, gate: Callable[..., None]) -> None:
    pytest.importorskip(
        "nvidia.dali", reason="DALI is not installed: pip install 'fastprune[dali]'"
    )
    images, training = len(photographs.paths), what == "training"
    feed = Feed(
        source=photographs,
        indices=np.arange(images),
        transform=ResizedCrop(size=224, resize=256),
        augment=training,
        shuffle=training,
        batch_size=BATCH,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        seed=0,
        workers=CORES,
    )
    ours, rival = open_pipeline(feed, "dali"), open_pipeline(replace(feed), "torchvision")
    wall: dict[str, list[float]] = {"dali": [], "torchvision": []}

    def epoch(pipeline: Any) -> Callable[[], None]:
        def run() -> None:
            start = time.perf_counter()
            seen = sum(len(y) for _, y in pipeline.epoch(0))
            wall[pipeline.kind].append(time.perf_counter() - start)
            assert seen == pipeline.images

        return run

    # Both give the same images, or their times mean nothing.
    for (x, y), (other, labels) in zip(ours.epoch(0), rival.epoch(0), strict=True):
        assert (y == labels).all()
        assert (x - other).abs().mean() < 0.01
    found = compare(benchmark, epoch(ours), epoch(rival), rounds=5, timer=all_cpu_seconds)
    rival.close()
    gate(
        f"data/dali/{what}",
        found,
        rival="torchvision, 2 workers",
        images=images,
        cpu_us_an_image=round(1e6 * found.ours.best / images),
        wall_images_per_s=round(images / min(wall["dali"])),
        rival_wall_images_per_s=round(images / min(wall["torchvision"])),
    )
