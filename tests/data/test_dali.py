"""The DALI pipeline against torchvision's, which the same seed gives the same crops and flips."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastprune.data import DataOptions, Feed, Files, Images, PadCrop, Part, Placement, ResizedCrop
from fastprune.data._choice import open_pipeline
from fastprune.data._dali_graph import Wanted, _Source, decoded
from fastprune.data._encoded import centre_cut, random_cut
from fastprune.data._pipeline import InputPipeline
from fastprune.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def dali() -> None:
    """Skips a test that runs DALI where there is none."""
    pytest.importorskip("nvidia.dali", reason="DALI: pip install 'fastprune[dali]'")


def photograph(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth image: without edges, decoders and resizes differ by rounding alone."""
    small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpegs(folder: Path, count: int) -> Files:
    generator = np.random.default_rng(1)
    for i in range(count):
        image = photograph(generator, 40 + 7 * (i % 4), 36 + 5 * (i % 3))
        image.convert("L" if i % 5 == 4 else "RGB").save(folder / f"{i}.jpg", quality=90)
    return Files(tuple(str(folder / f"{i}.jpg") for i in range(count)), np.arange(count))


def feed(source: Files, **changed: object) -> Feed:
    """Training, unless changed; an image's label is its number."""
    fields: dict[str, object] = {
        "source": source,
        "indices": np.arange(len(source.paths)),
        "transform": ResizedCrop(24, 28),
        "augment": True,
        "shuffle": True,
        "batch_size": 4,
        "mean": MEAN,
        "std": STD,
        "seed": 3,
        "workers": 2,
    }
    return Feed(**{**fields, **changed})  # type: ignore[arg-type]


EVALUATION = {"augment": False, "shuffle": False}


def levels(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Differences of normalised images on the scale of 0 to 255."""
    return (x.float() - y.float()).abs() * torch.tensor(STD).view(3, 1, 1) * 255


def same_images(one: InputPipeline, other: InputPipeline, epoch: int, mean: float = 0.5) -> None:
    """Labels, order and bounds are equal; pixels of every image to ``mean`` levels of 255."""
    assert (one.images, one.batches, one.batch_size) == (
        other.images,
        other.batches,
        other.batch_size,
    )
    for (x, y), (again, labels) in zip(one.epoch(epoch), other.epoch(epoch), strict=True):
        assert torch.equal(y, labels)
        assert x.shape == again.shape
        assert x.dtype == again.dtype
        assert levels(x, again).mean((1, 2, 3)).max() <= mean


def by_label(pipeline: InputPipeline, epoch: int) -> dict[int, torch.Tensor]:
    return {
        int(label): image
        for x, y in pipeline.epoch(epoch)
        for image, label in zip(x, y, strict=True)
    }


# What it gives


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("changed", [{}, EVALUATION, {"workers": 0}, {"batch_size": 1}])
def test_crops_flips_labels_and_order_are_those_of_torchvision(
    changed: dict[str, object], tmp_path: Path
) -> None:
    wanted = feed(jpegs(tmp_path, 13), **changed)
    ours = open_pipeline(wanted, "dali")
    assert ours.kind == "dali"
    for epoch in (0, 5):
        same_images(ours, open_pipeline(replace(wanted, workers=0), "torchvision"), epoch)


@pytest.mark.usefixtures("dali")
def test_files_of_all_kinds_look_as_pil_shows_them(tmp_path: Path) -> None:
    image = photograph(np.random.default_rng(2), 61, 47)
    ramp = Image.linear_gradient("L").resize(image.size)
    clear = image.copy()
    clear.putalpha(ramp)
    turned = Image.Exif()
    turned[0x112] = 6
    deep = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    cases: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("grey.jpg", image.convert("L"), {}),
        ("cmyk.jpg", image.convert("CMYK"), {}),
        ("progressive.jpg", image, {"progressive": True}),
        ("whole_chroma.jpg", image, {"subsampling": 0}),
        ("rgb.jpg", image, {"keep_rgb": True}),
        ("turned.jpg", image, {"exif": turned}),
        ("rgb.png", image, {}),
        ("grey.png", image.convert("L"), {}),
        ("palette.png", image.convert("P"), {}),
        ("clear_palette.png", image.convert("P"), {"transparency": 3}),
        ("alpha.png", clear, {}),
        ("grey_alpha.png", clear.convert("LA"), {}),
        ("bits.png", image.convert("1"), {}),
        ("deep.png", deep, {}),
        ("lossy.webp", image, {}),
        ("lossless.webp", image, {"lossless": True}),
        ("alpha.webp", clear, {}),
        ("moving.webp", image, {"save_all": True, "append_images": [image.rotate(180)]}),
        ("rgb.bmp", image, {}),
        ("rgb.ppm", image, {}),
        ("rgb.tif", image, {}),
        ("cmyk.tif", image.convert("CMYK"), {}),
    ]
    for name, made, options in cases:
        made.save(tmp_path / name, **options)  # type: ignore[arg-type]
    source = Files(tuple(str(tmp_path / name) for name, _, _ in cases), np.arange(len(cases)))
    for changed in ({}, EVALUATION):
        wanted = feed(source, batch_size=5, **changed)
        ours = open_pipeline(wanted, "dali")
        same_images(ours, open_pipeline(replace(wanted, workers=0), "torchvision"), 1)
        assert ours.bad_images == ()


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("changed", [{}, EVALUATION])
def test_real_photographs(changed: dict[str, object], fastprune_data: Path) -> None:
    paths = sorted(map(str, (fastprune_data / "imagenet-sample-256").glob("*/*")))[::25]
    paths += sorted(map(str, (fastprune_data / "hymenoptera-256").glob("val/*/*")))[::10]
    source = Files(tuple(paths), np.arange(len(paths)))
    wanted = feed(source, transform=ResizedCrop(224, 248), batch_size=16, **changed)
    ours = open_pipeline(wanted, "dali")
    same_images(ours, open_pipeline(replace(wanted, workers=0), "torchvision"), 2)


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("changed", [{}, EVALUATION])
def test_tiny_narrow_and_square_images(changed: dict[str, object], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = [(1, 1), (2, 3), (1, 60), (60, 1), (24, 24), (28, 28), (28, 41), (29, 28), (7, 200)]
    for i, (width, height) in enumerate(sizes):
        photograph(generator, width, height).save(tmp_path / f"{i}.jpg")
    paths = tuple(str(tmp_path / f"{i}.jpg") for i in range(len(sizes)))
    wanted = feed(Files(paths, np.arange(len(sizes))), **changed)
    for epoch in range(3):
        same_images(
            open_pipeline(wanted, "dali"),
            open_pipeline(replace(wanted, workers=0), "torchvision"),
            epoch,
        )


@pytest.mark.usefixtures("dali")
def test_what_a_gpu_runs_gives_the_same_images(tmp_path: Path) -> None:
    """The graph in which DALI resizes and cuts too, on the CPU."""
    source = jpegs(tmp_path, 9)
    transform = ResizedCrop(24, 28)

    def cut(augment: bool, image: int) -> Callable[[int, int], object]:
        generator = np.random.default_rng(image)
        if augment:
            return lambda height, width: random_cut(height, width, transform, generator)
        return lambda height, width: centre_cut(height, width, transform)

    def batches(augment: bool, whole: bool) -> list[torch.Tensor]:
        wanted = [
            Wanted(path, (int(stamp[0]), int(stamp[1])), i, cut(augment, i))  # type: ignore[arg-type]
            for i, (path, stamp) in enumerate(zip(source.paths, source.stamps, strict=True))
        ]
        made = decoded(
            iter([wanted[:4], wanted[4:8], wanted[8:]]),
            size=24,
            most=4,
            device=torch.device("cpu"),
            threads=2,
            known_bad={},
            whole=whole,
        )
        return [pixels for pixels, _ in made]

    for augment in (True, False):
        found, expected = batches(augment, whole=True), batches(augment, whole=False)
        for x, y in zip(found, expected, strict=True):
            assert x.shape == y.shape
            assert (x.float() - y.float()).abs().mean((1, 2, 3)).max() <= 0.5
        # A batch is not overwritten by those after it.
        assert not torch.equal(found[0], found[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("changed", [{}, EVALUATION])
def test_decoded_on_a_gpu(changed: dict[str, object], tmp_path: Path) -> None:
    wanted = feed(jpegs(tmp_path, 13), **changed)
    ours, other = open_pipeline(wanted, "dali"), open_pipeline(wanted, "torchvision")
    placement = Placement(torch.device("cuda"), torch.float16, True)
    found = list(ours.epoch(0, placement=placement))
    for (x, y), (again, labels) in zip(found, other.epoch(0), strict=True):
        assert x.is_cuda
        assert x.dtype == torch.float16
        assert torch.equal(y.cpu(), labels)
        assert levels(x.cpu(), again).mean() <= 2


@pytest.mark.usefixtures("dali")
def test_placed_as_the_network_wants_it(tmp_path: Path) -> None:
    pipeline = open_pipeline(feed(jpegs(tmp_path, 6)), "dali")
    placed = list(pipeline.epoch(0, placement=Placement(dtype=torch.bfloat16, channels_last=True)))
    for (x, y), (plain, _) in zip(placed, pipeline.epoch(0), strict=True):
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, plain.to(torch.bfloat16))
        assert y.dtype == torch.int64


# Which images, and in which order


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("start", [1, 3, 4])
def test_an_epoch_goes_on_in_the_middle(start: int, tmp_path: Path) -> None:
    pipeline = open_pipeline(feed(jpegs(tmp_path, 15)), "dali")
    whole = list(pipeline.epoch(5))
    rest = list(pipeline.epoch(5, start))
    assert len(rest) == len(whole) - start
    for (x, y), (again, labels) in zip(whole[start:], rest, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)


@pytest.mark.usefixtures("dali")
def test_an_image_depends_on_seed_and_epoch_but_not_on_its_batch(tmp_path: Path) -> None:
    source = jpegs(tmp_path, 12)
    reference = by_label(open_pipeline(feed(source), "dali"), 2)
    torch.manual_seed(99)
    for changed in (
        {"batch_size": 5},
        {"batch_size": 100},
        {"indices": np.arange(0, 12, 3)},
        {"workers": 1},
    ):
        found = by_label(open_pipeline(feed(source, **changed), "dali"), 2)
        assert all(torch.equal(image, reference[label]) for label, image in found.items())
    for other in (
        by_label(open_pipeline(feed(source), "dali"), 3),
        by_label(open_pipeline(feed(source, seed=4), "dali"), 2),
    ):
        assert not any(torch.equal(image, reference[label]) for label, image in other.items())


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("changed", [{}, EVALUATION])
def test_ranks_share_the_images_out(changed: dict[str, object], tmp_path: Path) -> None:
    wanted = feed(jpegs(tmp_path, 12), **changed)
    pipeline = open_pipeline(wanted, "dali")
    whole = by_label(pipeline, 0)
    for dealt in (False, True):
        seen = []
        for rank in range(3):
            for x, y in pipeline.epoch(0, part=Part(rank, 3, dealt)):
                seen += y.tolist()
                for image, label in zip(x, y.tolist(), strict=True):
                    assert torch.equal(image, whole[label])
        assert sorted(seen) == list(range(12))


@pytest.mark.usefixtures("dali")
def test_no_images_no_batches(tmp_path: Path) -> None:
    empty = feed(jpegs(tmp_path, 1), indices=np.arange(0))
    assert list(open_pipeline(empty, "dali").epoch(0)) == []


# Files that are no images


def spoiled(source: Files, how: Mapping[int, str]) -> Files:
    """The same files, some of them made unreadable, listed anew."""
    for label, way in how.items():
        spoil(source.paths[label], way)
    return Files(source.paths, source.labels)


def spoil(path: str, how: str) -> None:
    raw = bytearray(Path(path).read_bytes())
    if how == "truncated":
        raw = raw[: len(raw) * 2 // 3]
    elif how == "empty":
        raw.clear()
    elif how == "text":
        raw[:] = b"no image at all"
    else:
        # A table of 255 codes of one bit: the header is still fine, and so is the end.
        raw[raw.index(b"\xff\xc4") + 5] = 255
    Path(path).write_bytes(raw)


WAYS = ["truncated", "empty", "text", "table"]


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("how", WAYS)
def test_a_bad_file_is_named_on_one_line(how: str, tmp_path: Path) -> None:
    source = spoiled(jpegs(tmp_path, 9), {4: how})
    pipeline = open_pipeline(feed(source), "dali")
    with pytest.raises(DataError, match=r"4\.jpg: not a readable image: ") as caught:
        list(pipeline.epoch(0))
    assert "\n" not in str(caught.value)
    # The batches before it came.
    made = open_pipeline(feed(source, **EVALUATION), "dali").epoch(0)
    assert next(made)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"4\.jpg"):
        next(made)


@pytest.mark.usefixtures("dali")
def test_bad_files_leave_their_batches_shorter_every_time(tmp_path: Path) -> None:
    source = jpegs(tmp_path, 16)
    whole = by_label(open_pipeline(feed(source), "dali"), 1)
    bad = dict(zip((2, 7, 11, 14), WAYS, strict=True))
    source = spoiled(source, bad)
    pipeline = open_pipeline(feed(source, max_bad_images=4), "dali")
    for _ in range(2):
        found = by_label(pipeline, 1)
        assert sorted(found) == [i for i in range(16) if i not in bad]
        assert all(torch.equal(image, whole[label]) for label, image in found.items())
        assert sorted(pipeline.bad_images) == sorted(source.paths[label] for label in bad)
    batches = [y.tolist() for _, y in pipeline.epoch(1)]
    again = open_pipeline(feed(source, max_bad_images=4), "dali")
    assert [y.tolist() for _, y in again.epoch(1, 2)] == batches[2:]


@pytest.mark.usefixtures("dali")
def test_more_bad_files_than_may_be(tmp_path: Path) -> None:
    source = spoiled(jpegs(tmp_path, 12), dict.fromkeys((1, 5, 6), "truncated"))
    pipeline = open_pipeline(feed(source, max_bad_images=2), "dali")
    with pytest.raises(DataError, match=r"one more than data\.max_bad_images=2 allows, after .*"):
        list(pipeline.epoch(0))


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("how", WAYS)
def test_a_batch_of_nothing_but_bad_files(how: str, tmp_path: Path) -> None:
    source = spoiled(jpegs(tmp_path, 12), dict.fromkeys((4, 5, 6, 7), how))
    made = open_pipeline(feed(source, max_bad_images=8, **EVALUATION), "dali").epoch(0)
    assert len(next(made)[1]) == 4
    assert [y.tolist() for _, y in made] == [[8, 9, 10, 11]]


@pytest.mark.usefixtures("dali")
def test_what_dali_cannot_decode_and_pil_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = spoiled(jpegs(tmp_path, 4), {1: "table"})
    monkeypatch.setattr("fastprune.data._dali.decode", lambda path, content: None)
    with pytest.raises(DataError, match=r"\.jpg; take data\.pipeline=torchvision") as caught:
        list(open_pipeline(feed(source), "dali").epoch(0))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("dali")
def test_a_file_that_changed_is_told_of(tmp_path: Path) -> None:
    source = jpegs(tmp_path, 12)
    photograph(np.random.default_rng(9), 40, 30).save(source.paths[5])
    made = open_pipeline(feed(source, max_bad_images=12, **EVALUATION), "dali").epoch(0)
    assert next(made)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"5\.jpg: changed since the run began"):
        next(made)


# What stays behind


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.usefixtures("dali")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_an_epoch_leaves_nothing_behind(tmp_path: Path) -> None:
    pipeline = open_pipeline(feed(jpegs(tmp_path, 30)), "dali")
    list(pipeline.epoch(0))
    gc.collect()
    before = threads()

    def left() -> tuple[bool, bool]:
        """Threads, and what was read: garbage that is still to be collected counts."""
        deadline = time.monotonic() + 5
        # A thread that was joined lingers in /proc for a moment.
        while threads() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        return threads() > before, any(type(found) is _Source for found in gc.get_objects())

    gc.disable()
    try:
        running = pipeline.epoch(1)
        next(running)
        assert threads() > before
        del running
        assert left() == (False, False)
        running = pipeline.epoch(1)
        next(running)
        pipeline.close()
        assert left() == (False, False)
        assert list(running) == []
        assert len(list(pipeline.epoch(1))) == pipeline.batches
        assert left() == (False, False)
    finally:
        gc.enable()


@pytest.mark.usefixtures("dali")
def test_a_new_epoch_ends_the_one_before(tmp_path: Path) -> None:
    pipeline = open_pipeline(feed(jpegs(tmp_path, 12)), "dali")
    whole = list(pipeline.epoch(1))
    running = pipeline.epoch(0)
    next(running)
    for (x, y), (again, labels) in zip(pipeline.epoch(1), whole, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
    assert list(running) == []


# What it does not do


def test_without_dali_the_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(DataError, match=r"pip install 'fastprune\[dali\]'") as caught:
        open_pipeline(feed(jpegs(tmp_path, 2)), "dali")
    assert "fastprune[dali-cuda120]" in str(caught.value)
    assert "fastprune[dali-cuda110]" in str(caught.value)


def test_a_dali_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "nvidia" / "dali"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import no_such_module_of_dali")
    (tmp_path / "nvidia" / "__init__.py").write_text("")
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"DALI does not load: .*no_such_module_of_dali"):
        open_pipeline(feed(jpegs(tmp_path, 2)), "dali")


@pytest.mark.usefixtures("dali")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    made = open_pipeline(feed(jpegs(tmp_path, 2)), "dali").epoch(
        0, placement=Placement(torch.device("cuda:0"))
    )
    with pytest.raises(DataError, match=r"DALI does not start on cuda:0: .*(CUDA|cuda)") as caught:
        next(made)
    assert "\n" not in str(caught.value)
    assert "tacktrace" not in str(caught.value)


def test_images_in_memory_are_for_another_pipeline() -> None:
    source = Images(np.zeros((2, 3, 8, 8), np.uint8), np.arange(2))
    held = replace(feed(Files((), np.arange(0))), source=source, transform=PadCrop(2, True))
    with pytest.raises(DataError, match="in memory; use auto or device"):
        open_pipeline(held, "dali")


@pytest.mark.usefixtures("dali")
def test_transforms_it_does_not_know(tmp_path: Path) -> None:
    source = jpegs(tmp_path, 2)
    with pytest.raises(ValueError, match="expected ResizedCrop for image files"):
        open_pipeline(feed(source, transform=PadCrop(2, True)), "dali")
    with pytest.raises(ValueError, match="at least the size, 24, got 20"):
        open_pipeline(feed(source, transform=ResizedCrop(24, 20)), "dali")


def test_the_option_names_it() -> None:
    assert DataOptions(pipeline="dali").pipeline == "dali"
