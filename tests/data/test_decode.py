"""Odd image files against readings that do not go through Pillow's conversions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from fastprune.data._decode import Bad, Unusable, decode, read_bytes, read_image

GENERATOR = np.random.default_rng(0)
# Blocks of one colour each, so that JPEG's coarser colour changes little.
COLOURS = np.kron(GENERATOR.integers(0, 256, (4, 5, 3), dtype=np.uint8), np.ones((16, 16, 1)))
COLOURS = COLOURS.astype(np.uint8)
GREY = COLOURS[..., 1]


def seen(path: Path) -> np.ndarray:
    """What `read_image` gives, after checking that it is an RGB image."""
    stamp = path.stat()
    image = read_image(str(path), stamp.st_size, stamp.st_mtime_ns)
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return np.asarray(image)


def torchvisions(path: Path) -> np.ndarray:
    """The same file by torchvision's own decoder."""
    content = torch.from_numpy(np.fromfile(path, np.uint8))
    return decode_image(content, ImageReadMode.RGB).permute(1, 2, 0).numpy()


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None].astype(np.float64) / 255
    return pixels * share + 255 * (1 - share)


@pytest.mark.filterwarnings("ignore:The image decoding")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_as_torchvisions_decoder_reads_them(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOURS).convert(mode).save(path, quality=95, subsampling=0)
    found = seen(path)
    np.testing.assert_array_equal(found, torchvisions(path))
    wanted = np.asarray(Image.fromarray(COLOURS).convert("L"))[..., None] if mode == "L" else None
    assert np.abs(found.astype(int) - (COLOURS if wanted is None else wanted)).mean() < 3


def test_cmyk_of_adobe_is_inverted_and_that_of_tiff_is_not(tmp_path: Path) -> None:
    inks = GENERATOR.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (8, 8), inks.tobytes()).save(tmp_path / "a.tif")
    cmy, k = inks[..., :3].astype(float), inks[..., 3:].astype(float)
    wanted = (255 - cmy) * (255 - k) / 255
    assert np.abs(seen(tmp_path / "a.tif") - wanted).max() <= 1
    flat = Image.frombytes("CMYK", (64, 64), bytes([255, 0, 0, 0]) * 4096)
    flat.save(tmp_path / "cyan.jpg", quality=100, subsampling=0)
    assert b"Adobe" in (tmp_path / "cyan.jpg").read_bytes()
    assert np.abs(seen(tmp_path / "cyan.jpg").astype(int) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp"])
def test_lossless_colour_comes_back_whole(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOURS).save(path, **({"lossless": True} if ending == "webp" else {}))
    np.testing.assert_array_equal(seen(path), COLOURS)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_palettes_become_their_colours(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    indices = GENERATOR.integers(0, 7, (9, 11), dtype=np.uint8)
    palette = GENERATOR.integers(0, 256, (7, 3), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.tobytes())
    image.save(path)
    np.testing.assert_array_equal(seen(path), palette[indices])


@pytest.mark.parametrize("clear", [3, bytes([255, 0, 128, 7])], ids=["one", "degrees"])
def test_clear_palette_entries_show_white(clear: int | bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    indices = GENERATOR.integers(0, 7, (9, 11), dtype=np.uint8)
    palette = GENERATOR.integers(0, 256, (7, 3), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.tobytes())
    image.save(path, transparency=clear)
    alpha = np.full(7, 255)
    if isinstance(clear, int):
        alpha[clear] = 0
    else:
        alpha[: len(clear)] = list(clear)
    wanted = over_white(palette[indices], alpha[indices])
    assert np.abs(seen(path) - wanted).max() <= 1


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_shows_white(mode: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    alpha = GENERATOR.integers(0, 256, GREY.shape, dtype=np.uint8)
    alpha[:8], alpha[8:16] = 0, 255
    pixels = COLOURS if mode == "RGBA" else np.repeat(GREY[..., None], 3, axis=2)
    layers = [*(COLOURS.transpose(2, 0, 1) if mode == "RGBA" else [GREY]), alpha]
    image = Image.merge(mode, [Image.fromarray(np.ascontiguousarray(x)) for x in layers])
    image.save(path, **({"lossless": True, "exact": True} if ending == "webp" else {}))
    found = seen(path)
    assert np.abs(found - over_white(pixels, alpha)).max() <= 1
    assert (found[:8] == 255).all()
    np.testing.assert_array_equal(found[8:16], pixels[8:16])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_png_colour_that_stands_for_nothing_shows_white(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.fromarray(COLOURS if mode == "RGB" else GREY)
    key = tuple(COLOURS[0, 0].tolist()) if mode == "RGB" else int(GREY[0, 0])
    image.save(path, transparency=key)
    wanted = np.asarray(image.convert("RGB")).copy()
    wanted[(wanted == wanted[0, 0]).all(axis=2)] = 255
    np.testing.assert_array_equal(seen(path), wanted)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_brought_to_eight(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    values = GENERATOR.integers(0, 65536, (9, 11), dtype=np.uint16)
    values[0, :3] = 0, 65535, 255
    Image.fromarray(values).save(path)
    wanted = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(seen(path), np.repeat(wanted[..., None], 3, axis=2))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 128).save(tmp_path / "a.png")
    np.testing.assert_array_equal(seen(tmp_path / "a.png")[..., 2], np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_of_an_animation_it_is_the_first_frame(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    first, second = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)
    exact = {"lossless": True} if ending == "webp" else {}
    first.save(path, save_all=True, append_images=[second], **exact)
    with Image.open(path) as opened:
        assert opened.n_frames == 2  # type: ignore[attr-defined]
    np.testing.assert_array_equal(seen(path), COLOURS)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=exif)
    assert seen(tmp_path / "a.jpg").shape == COLOURS.shape


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    found = decode("a.png", (tmp_path / "a.png").read_bytes())
    assert isinstance(found, Bad)
    assert "5120 pixels" in found.reason
    assert "limit of 200 pixels" in found.reason


def test_thirty_two_bits_a_channel_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    found = decode("a.tif", (tmp_path / "a.tif").read_bytes())
    assert found == Bad("a.tif", "32 bits a channel; expected 8 or 16")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif", "ppm"])
def test_truncated_files_are_bad(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOURS).save(path)
    content = path.read_bytes()
    for share in (0, 0.02, 0.3, 0.6, 0.9):
        found = decode("a", content[: round(share * len(content))])
        assert isinstance(found, Bad), share
        assert found.reason
        assert "\n" not in found.reason
        assert "0x" not in found.reason


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif", "ppm"])
@pytest.mark.filterwarnings("ignore")
def test_no_content_raises(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOURS).save(path)
    content = path.read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(300):
        altered = bytearray(content)
        for place in generator.integers(0, min(len(content), 300), 4):
            altered[place] = generator.integers(0, 256)
        assert isinstance(decode("a", bytes(altered)), Image.Image | Bad)


def test_a_file_that_is_not_the_listed_one_says_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 1000)
    stamp = path.stat()
    listed = str(path), stamp.st_size, stamp.st_mtime_ns
    assert read_bytes(*listed) == b"x" * 1000
    os.utime(path, ns=(0, stamp.st_mtime_ns + 1))
    found = [read_bytes(*listed)]
    path.write_bytes(b"x" * 999)
    found.append(read_bytes(*listed))
    path.unlink()
    found.append(read_bytes(*listed))
    path.mkdir()
    found.append(read_bytes(*listed))
    reasons = ["it was written to", "it had 1,000 bytes, and has 999", "it is gone", "Is a dir"]
    for given, reason in zip(found, reasons, strict=True):
        assert isinstance(given, Unusable)
        assert reason in given.reason
