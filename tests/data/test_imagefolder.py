from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image

from fastprune.data import DataOptions, load, load_test
from fastprune.errors import DataError


def make(folder: Path, names: tuple[str, ...], count: int = 3) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 16), (i * 40, 9, 9)).save(folder / name / f"{i}.JPG", "JPEG")


def flat(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("im_1", "im_10", "im_2"):
        Image.new("RGB", (20, 16)).save(folder / f"{name}.JPEG")


def options(root: Path, **changed: object) -> DataOptions:
    fields = {"name": "imagefolder", "root": root, "workers": 0, "image_size": 16, **changed}
    return DataOptions.model_validate(fields)


def problem(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(options(root), seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["val", "test"])
def test_class_folders_become_labels_by_name(tmp_path: Path, name: str) -> None:
    make(tmp_path / "train", ("b", "a", "c"), 4)
    make(tmp_path / name, ("a", "b", "c"), 2)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "a" / "notes.txt").write_text("x")
    splits = load(options(tmp_path, validation=3, batch_size=4), seed=0)
    assert splits.info.classes == ("a", "b", "c")
    assert splits.info.input_shape == (3, 16, 16)
    assert splits.validation is not None
    assert (splits.train.images, splits.validation.images, splits.test.images) == (8, 3, 6)
    x, y = next(splits.test.epoch(0))
    assert x.shape == (6, 3, 16, 16)
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    assert sum(len(x) for x, _ in splits.train.epoch(0)) == splits.train.images
    splits.close()


def test_the_test_set_needs_no_train_folder(tmp_path: Path) -> None:
    make(tmp_path / "val", ("a", "b"))
    test, info = load_test(options(tmp_path))
    assert (test.images, info.num_classes) == (6, 2)
    assert "has no train/" in problem(tmp_path)


def test_wrong_layouts_say_how_to_arrange_the_images(tmp_path: Path) -> None:
    arrange = "train/CLASS/*.jpg and val/CLASS/*.jpg"
    assert "there is no folder" in problem(tmp_path / "nowhere")
    message = problem(tmp_path)
    assert "neither train/ nor val/" in message
    assert arrange in message
    make(tmp_path / "train", ("a", "b"))
    message = problem(tmp_path)
    assert "has no val/ or test/" in message
    (tmp_path / "val").mkdir()
    message = problem(tmp_path)
    assert f"{tmp_path / 'val'}: no class folders; " in message
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "1.png")
    message = problem(tmp_path)
    assert "1 images but no class folders" in message
    assert arrange in message


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("val/val_map.txt", "{a} a\n{b} b\n{c} b\n"),
        ("val_map.txt", "{a}\ta\r\n{b}\tb\r\n{c}\tb\r\n"),
        ("labels.csv", "file;label\n{a};a\n{b};b\n{c};b\n"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nim_1,a 85 1 499 272 a 2 3 4 5\nim_10,b 1 2 3 4\nim_2,b\n",
        ),
        ("../../../LOC_val_solution.csv", "ImageId,PredictionString\nim_1,a 8\nim_10,b\nim_2,b"),
    ],
)
def test_a_flat_val_comes_with_the_command_that_sorts_it(
    tmp_path: Path, place: str, text: str
) -> None:
    root = tmp_path / "it's" / "ILSVRC" / "Data" / "CLS-LOC"
    make(root / "train", ("a", "b"))
    flat(root / "val")
    file = root / place
    file.write_text(text.format(a="im_1.JPEG", b="im_10.JPEG", c="im_2.JPEG"), newline="")
    (root / "readme.txt").write_text("nothing\n")
    message = problem(root)
    assert f"{root / 'val'}: 3 images but no class folders" in message
    assert "train/CLASS/*.jpg and val/CLASS/*.jpg: " in message
    assert file.resolve().name in message
    command = message.partition("sort them by it: ")[2]
    subprocess.run(["bash", "-c", command], check=True)
    test, _ = load_test(options(root))
    assert [y.tolist() for _, y in test.epoch(0)] == [[0, 1, 1]]


def test_a_flat_val_whose_mapping_names_other_classes(tmp_path: Path) -> None:
    make(tmp_path / "train", ("a", "b"))
    flat(tmp_path / "val")
    assert problem(tmp_path).endswith(
        "no class folders; arrange the images as train/CLASS/*.jpg and val/CLASS/*.jpg"
    )
    truth = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.parent.mkdir(parents=True)
    truth.write_text("490\n361\n171\n")
    message = problem(tmp_path)
    assert f"{truth} has a number for each" in message
    assert "torchvision.datasets.ImageNet" in message
    (tmp_path / "val.txt").write_text("im_1.JPEG 65\nim_10.JPEG 970\n")
    message = problem(tmp_path)
    assert "gives im_1.JPEG the class '65', which is no folder of" in message


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    make(tmp_path / "train", ("a", "b"))
    make(tmp_path / "val", ("a", "b"))
    for image in (tmp_path / "val" / "b").iterdir():
        image.unlink()
    assert f"{tmp_path / 'val' / 'b'}: a class folder without images" in problem(tmp_path)


def test_train_and_val_have_the_same_classes(tmp_path: Path) -> None:
    make(tmp_path / "train", ("a", "b", "c", "d"))
    make(tmp_path / "val", ("a", "b"))
    assert f"{tmp_path / 'val'}: no class folder 'c' and 1 more" in problem(tmp_path)
    make(tmp_path / "val", ("c", "d", "e"))
    assert f"{tmp_path / 'train'}: no class folder 'e', which" in problem(tmp_path)


def test_photographs_of_ants_and_bees(fastprune_data: Path) -> None:
    given = options(
        fastprune_data / "hymenoptera-256", image_size=64, validation=0, train_limit=20
    )
    splits = load(given, seed=0)
    assert splits.info.classes == ("ants", "bees")
    assert (splits.train.images, splits.test.images) == (20, 153)
    images = [x for x, _ in splits.train.epoch(0)]
    assert images[0].shape == (20, 3, 64, 64)
    assert 0.5 < images[0].std() < 2
