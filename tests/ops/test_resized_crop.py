"""What the conformance suite does not say of resized_crop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastprune.ops import resized_crop, use_backend
from fastprune.testing.ops import cases_of

NAMES = ("pixels", "starts", "sizes", "images", "boxes", "size", "mean", "std")


def given(**changed: Any) -> dict[str, Any]:
    case = cases_of("resized_crop")[0]
    arguments = case.make(torch.device("cpu"), torch.Generator().manual_seed(0))
    return {**dict(zip(NAMES, arguments, strict=False)), **changed}


def test_threads_change_nothing() -> None:
    few = given(size=64)
    many = {**few, "images": few["images"].repeat(30), "boxes": few["boxes"].repeat(30, 1)}
    alone = resized_crop(**many)
    torch.set_num_threads(5)
    assert torch.equal(resized_crop(**many), alone)


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_lower_vector_levels(level: str) -> None:
    """What other processors run, where this one has more; the level is chosen once a process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(Path(__file__).with_name("test_conformance.py")), "-k"]
    command += ["test_values and resized_crop"]
    environment = {**os.environ, "FASTPRUNE_SIMD": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def changed_box(column: int, value: int) -> Tensor:
    boxes: Tensor = given()["boxes"].clone()
    boxes[1, column] = value
    return boxes


@pytest.mark.parametrize(("column", "value"), [(0, -1), (1, 1), (2, 0), (3, 41), (2, 2**31 - 1)])
def test_a_part_outside_its_image(column: int, value: int) -> None:
    for backend in ("cpp", "reference"):
        with use_backend(backend), pytest.raises(ValueError, match=r"boxes\[1\]: expected a part"):
            resized_crop(**given(boxes=changed_box(column, value)))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_image_that_is_not_there(wrong: int) -> None:
    images = torch.tensor([0, 2, wrong, 3])
    for backend in ("cpp", "reference"):
        with use_backend(backend), pytest.raises(IndexError, match=r"images\[2\]: expected 0 to"):
            resized_crop(**given(images=images))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("first", [-1, 2**63 - 1])
def test_an_image_outside_the_set(backend: str, first: int) -> None:
    starts = given()["starts"].clone()
    starts[0] = first
    words = rf"starts\[0\]: an image of 20 × 31 from byte {first} on is not inside"
    with use_backend(backend), pytest.raises(ValueError, match=words):
        resized_crop(**given(starts=starts))


LARGE = 2**31 - 1


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("size", [(LARGE, LARGE), (LARGE, LARGE // 2), (-20, -31)])
def test_an_image_larger_than_the_set(backend: str, size: tuple[int, int]) -> None:
    # Three times the first is no number of 64 bits.
    sizes = given()["sizes"].clone()
    sizes[0] = torch.tensor(size)
    words = rf"starts\[0\]: an image of {size[0]} × {size[1]} from byte 0 on is not inside"
    with use_backend(backend), pytest.raises(ValueError, match=words):
        resized_crop(**given(sizes=sizes))


def test_errors() -> None:
    good = given()
    for changed, error, words in (
        ({"pixels": good["pixels"].float()}, TypeError, "pixels: expected torch.uint8"),
        ({"pixels": good["pixels"][None]}, ValueError, r"pixels: expected shape \[bytes\]"),
        ({"sizes": good["sizes"][:2]}, ValueError, r"sizes: expected shape \[5, 2\], got \[2, 2"),
        ({"boxes": good["boxes"].long()}, TypeError, "boxes: expected torch.int32"),
        ({"mean": good["mean"].to("meta")}, ValueError, "mean: expected device cpu"),
        ({"size": 0}, ValueError, "size: expected 1 or more, got 0"),
        ({"dtype": torch.float64}, TypeError, "dtype: expected float32, bfloat16 or float16"),
    ):
        with pytest.raises(error, match=words):
            resized_crop(**{**good, **changed})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_not_there_is_nan_on_a_gpu() -> None:
    images, boxes = torch.tensor([0, 5, -1, 3]), changed_box(2, 3)
    boxes[0, 3] = 40
    good = {name: t.cuda() if isinstance(t, Tensor) else t for name, t in given().items()}
    found = resized_crop(**{**good, "images": images.cuda(), "boxes": boxes.cuda()})
    assert found.isnan().flatten(1).all(1).tolist() == [True, True, True, False]
    assert not found[3].isnan().any()
    for size in ((LARGE, LARGE), (LARGE, LARGE // 2), (-20, -31)):
        sizes = good["sizes"].clone()
        sizes[0] = torch.tensor(size)
        found = resized_crop(**{**good, "sizes": sizes})
        assert found.isnan().flatten(1).all(1).tolist() == [True, False, False, False]
