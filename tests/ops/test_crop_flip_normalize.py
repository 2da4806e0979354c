"""What the conformance suite does not say of crop_flip_normalize."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastprune.errors import BackendError
from fastprune.ops import crop_flip_normalize, use_backend
from fastprune.testing.ops import cases_of

TYPES = [torch.float32, torch.bfloat16, torch.float16]
MEAN, STD = torch.tensor([100.5, 120.25, 90.0]), torch.tensor([60.1, 70.3, 51.7])


def image_set(count: int = 6, shape: tuple[int, ...] = (3, 9, 11)) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8)


def call(pixels: Tensor, images: Any, boxes: Any = None, **changed: Any) -> Tensor:
    arguments = {"mean": MEAN[: pixels.shape[1]], "std": STD[: pixels.shape[1]], **changed}
    images = torch.tensor(images, dtype=torch.int64) if isinstance(images, list) else images
    boxes = torch.tensor(boxes, dtype=torch.int32) if isinstance(boxes, list) else boxes
    return crop_flip_normalize(pixels, images, boxes, **arguments)


def by_numpy(pixels: Tensor, image: int, box: list[int], padding: int) -> Tensor:
    frame = ((0, 0), (padding, padding), (padding, padding))
    framed = np.pad(pixels[image].numpy(), frame)
    height, width = pixels.shape[2:]
    cut = framed[:, box[0] : box[0] + height, box[1] : box[1] + width]
    return torch.from_numpy(cut[..., ::-1].copy() if box[2] else cut)


def test_every_crop_and_flip_of_a_frame() -> None:
    pixels, padding = image_set(), 3
    boxes = [[i, j, k] for i in range(7) for j in range(7) for k in (0, 1)]
    images = [i % len(pixels) for i in range(len(boxes))]
    cut = [by_numpy(pixels, i, box, padding) for i, box in zip(images, boxes, strict=True)]
    expected = (torch.stack(cut).float() - MEAN[:, None, None]) / STD[:, None, None]
    assert torch.equal(call(pixels, images, boxes, padding=padding), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_byte_has_the_references_bits(dtype: torch.dtype, channels_last: bool) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    for mean, std in ((MEAN, STD), (torch.zeros(3), torch.ones(3)), (MEAN * 1e3, STD * 1e-3)):
        given: dict[str, Any] = {"mean": mean, "std": std, "channels_last": channels_last}
        found = call(pixels, [0], dtype=dtype, **given)
        with use_backend("reference"):
            assert torch.equal(found, call(pixels, [0], dtype=dtype, **given))
        assert torch.equal(found, call(pixels, [0], **given).to(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_cases_have_the_references_bits(dtype: torch.dtype) -> None:
    """The conformance suite leaves rounding some room; here there is none."""
    operator = torch.ops.fastprune.crop_flip_normalize
    for case in cases_of("crop_flip_normalize"):
        arguments = case.make(torch.device("cpu"), torch.Generator().manual_seed(1))
        if arguments[6] == dtype:
            found = operator(*arguments)
            with use_backend("reference"):
                assert torch.equal(found, operator(*arguments)), case.name


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_change_nothing(channels_last: bool) -> None:
    pixels = image_set(40, (3, 64, 61))
    images = torch.randint(0, 40, (101,))
    boxes = torch.stack([torch.randint(0, 9, (101,)) for _ in range(3)], 1).to(torch.int32)
    given: dict[str, Any] = {"padding": 4, "channels_last": channels_last}
    alone = call(pixels, images, boxes, **given)
    torch.set_num_threads(5)
    assert torch.equal(call(pixels, images, boxes, **given), alone)


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_lower_vector_levels(level: str) -> None:
    """What other processors run, where this one has more; the level is chosen once a process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(Path(__file__)), "-k", "bits or frame or ends"]
    environment = {**os.environ, "FASTPRUNE_SIMD": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_far_outside_it_is_black() -> None:
    most = 2**31 - 1
    pixels = image_set()
    boxes = [[most, 0, 0], [0, most, 1], [-most, 3, 0], [3, -most, 1], [3, 100, 0], [3, 3, 7]]
    found = call(pixels, list(range(6)), boxes, padding=3)
    black = (0 - MEAN) / STD
    assert torch.equal(found[:5], black.view(1, 3, 1, 1).expand(5, 3, 9, 11))
    with use_backend("reference"):
        assert torch.equal(found, call(pixels, list(range(6)), boxes, padding=3))


def test_rows_at_the_ends_of_the_set_read_nothing_outside() -> None:
    """A set in the middle of other memory: what surrounds it must not be seen."""
    around = torch.full((3 * 3 * 20 * 20,), 255, dtype=torch.uint8)
    pixels = around[400:-400][: 7 * 400].view(7, 1, 20, 20)
    pixels.copy_(torch.randint(0, 200, pixels.shape))
    boxes = [[i, j, k] for i in (0, 4, 8) for j in (0, 4, 8) for k in (0, 1)]
    for image in (0, 6):
        found = call(pixels, [image] * len(boxes), boxes, padding=4)
        cut = torch.stack([by_numpy(pixels, image, box, 4) for box in boxes])
        assert torch.equal(found, (cut.float() - MEAN[0]) / STD[0])


def test_sets_of_more_than_two_gigabytes() -> None:
    # Memory that nobody wrote to takes no room; one image at the end is written.
    pixels = torch.from_numpy(np.zeros((720_000, 3, 32, 32), np.uint8))
    assert pixels.numel() > 2**31
    last = image_set(1, (3, 32, 32))
    pixels[-1] = last[0]
    found = call(pixels, [len(pixels) - 1, 5], [[4, 4, 0], [4, 4, 0]], padding=4)
    assert torch.equal(found[:1], call(last, [0]))
    assert torch.equal(found[1:], call(torch.zeros_like(last), [0]))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_image_that_is_not_there(backend: str, wrong: int) -> None:
    with use_backend(backend), pytest.raises(IndexError):
        call(image_set(), [0, wrong])
    with pytest.raises(IndexError, match=rf"images\[1\]: expected 0 to 5, got {wrong}"):
        call(image_set(), [0, wrong])


def test_no_gradient_and_inference_mode() -> None:
    found = call(image_set(), [0], std=STD.clone().requires_grad_())
    assert not found.requires_grad
    with torch.inference_mode():
        assert torch.equal(
            call(image_set()[:1] * 0, [0]), call(torch.zeros_like(image_set()), [0])
        )


def test_explain() -> None:
    pixels = image_set()
    images = torch.zeros(4, dtype=torch.int64)
    assert crop_flip_normalize.explain(pixels, images, mean=MEAN, std=STD).backend == "cpp"
    strided = crop_flip_normalize.explain(pixels, images[::2], mean=MEAN, std=STD)
    assert strided.backend == "reference"
    assert "images: strides (2,) are not contiguous" in str(strided)
    with use_backend("cpp"), pytest.raises(BackendError, match="pixels: strides"):
        call(pixels.contiguous(memory_format=torch.channels_last), images)


def test_errors() -> None:
    pixels, images = image_set(), torch.zeros(2, dtype=torch.int64)
    boxes = torch.zeros(2, 3, dtype=torch.int32)
    for changed, error, words in (
        ({"pixels": pixels.numpy()}, TypeError, "pixels: expected a tensor, got ndarray"),
        ({"pixels": pixels.float()}, TypeError, "pixels: expected torch.uint8, got torch.float32"),
        ({"pixels": pixels[0]}, ValueError, r"pixels: expected \[M, C, H, W\], got shape"),
        ({"images": images.int()}, TypeError, "images: expected torch.int64, got torch.int32"),
        ({"images": images[None]}, ValueError, r"images: expected \[B\], got shape \[1, 2\]"),
        ({"boxes": boxes.long()}, TypeError, "boxes: expected torch.int32, got torch.int64"),
        ({"boxes": boxes[:1]}, ValueError, r"boxes: expected shape \[2, 3\], got \[1, 3\]"),
        ({"mean": MEAN[:2]}, ValueError, r"mean: expected shape \[3\], got \[2\]"),
        ({"std": STD.double()}, TypeError, "std: expected torch.float32, got torch.float64"),
        ({"std": STD.to("meta")}, ValueError, "std: expected device cpu, as pixels has, got meta"),
        ({"padding": -1}, ValueError, "padding: expected 0 or more, got -1"),
        ({"dtype": torch.float64}, TypeError, "dtype: expected float32, bfloat16 or float16"),
    ):
        given: Any = {"pixels": pixels, "images": images, "boxes": boxes, "mean": MEAN, "std": STD}
        with pytest.raises(error, match=words):
            crop_flip_normalize(**{**given, **changed})


def test_a_device_without_kernels_has_the_reference() -> None:
    given = (image_set().to("meta"), torch.zeros(5, dtype=torch.int64, device="meta"))
    found = crop_flip_normalize(*given, mean=MEAN.to("meta"), std=STD.to("meta"))
    assert found.shape == (5, 3, 9, 11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TYPES)
def test_a_gpu_has_the_cpus_bits(dtype: torch.dtype) -> None:
    operator = torch.ops.fastprune.crop_flip_normalize
    for case in cases_of("crop_flip_normalize"):
        here, there = (
            case.make(torch.device(device), torch.Generator().manual_seed(1))
            for device in ("cpu", "cuda")
        )
        if here[6] == dtype:
            assert torch.equal(operator(*there).cpu(), operator(*here)), case.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_image_that_is_not_there_is_nan_on_a_gpu() -> None:
    given = {"mean": MEAN.cuda(), "std": STD.cuda()}
    images = torch.tensor([-1, 0, 6], device="cuda")
    found = crop_flip_normalize(image_set().cuda(), images, **given)
    assert found.isnan().flatten(1).all(1).tolist() == [True, False, True]
    assert not found[1].isnan().any()
