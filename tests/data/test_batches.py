from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_files import feed_of, labels_of, photographs

from fastprune.data import Feed, Images, PadCrop
from fastprune.data._choice import KINDS, open_pipeline


@pytest.fixture
def feeds(tmp_path: Path) -> dict[str, Feed]:
    """An evaluation feed of files, which every kind feeds, and one of images in memory."""
    files = feed_of(photographs(tmp_path / "a", 8), augment=False, cache=tmp_path / "cache")
    pixels = np.zeros((8, 3, 6, 6), np.uint8)
    images = Images(pixels, np.arange(8))
    return {"files": files, "memory": replace(files, source=images, transform=PadCrop(1, True))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", ["files", "memory"])
def test_an_epoch_begins_at_no_batch_below_0(kind: str, held: str, feeds: dict[str, Feed]) -> None:
    if kind == "dali":
        if held == "memory":
            pytest.skip("DALI feeds image files alone")
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    pipeline = open_pipeline(feeds[held], kind)  # type: ignore[arg-type]
    for start in (-1, -2):
        with pytest.raises(ValueError, match=f"^start: expected 0 to 2, got {start}$"):
            labels_of(pipeline, 0, start)
    assert len(labels_of(pipeline, 0, 1)) == 1
    assert labels_of(pipeline, 0, 2) == []
    pipeline.close()
