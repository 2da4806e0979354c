from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastprune.data import DataOptions, load, load_test
from fastprune.errors import DataError


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_bytes(pickle.dumps(content, protocol=2))


def batch(seed: int, key: str, classes: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
    return {"data": pixels, key: [i % classes for i in range(20)]}


def cifar10(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    write(folder / "batches.meta", {"label_names": list("abcdefghij")})
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        write(folder / name, batch(i, "labels", 10))
    return folder


def cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    write(folder / "meta", {"fine_label_names": [f"c{i}" for i in range(100)]})
    write(folder / "train", batch(0, "fine_labels", 5))
    write(folder / "test", batch(1, "fine_labels", 5))


def test_cifar10_reads_all_batches_in_order(tmp_path: Path) -> None:
    cifar10(tmp_path)
    splits = load(DataOptions(name="cifar10", root=tmp_path, validation=0.2), seed=0)
    assert splits.validation is not None
    assert (splits.train.images, splits.validation.images, splits.test.images) == (80, 20, 20)
    assert splits.info.classes == tuple("abcdefghij")
    assert splits.info.input_shape == (3, 32, 32)
    x, y = next(splits.test.epoch(0))
    pixels = torch.from_numpy(batch(5, "labels", 10)["data"]).view(20, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (splits.info.mean, splits.info.std))
    torch.testing.assert_close(x * std + mean, pixels / 255)
    assert y.tolist() == [i % 10 for i in range(20)]


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    cifar100(tmp_path)
    splits = load(DataOptions(name="cifar100", root=tmp_path), seed=0)
    assert splits.info.num_classes == 100
    assert splits.train.images + splits.validation.images == 20  # type: ignore[union-attr]


def test_missing_files_name_the_root_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(DataOptions(name="cifar10", root=tmp_path / "nowhere"), seed=0)
    message = str(caught.value)
    assert message.startswith(f"data.root: cifar10 is not at {tmp_path / 'nowhere'}")
    assert "batches.meta" in message
    assert "download=true" in message


def test_the_test_set_needs_no_training_files(tmp_path: Path) -> None:
    folder = cifar10(tmp_path)
    (folder / "data_batch_3").unlink()
    test, info = load_test(DataOptions(name="cifar10", root=tmp_path))
    assert test.images == 20
    assert info.num_classes == 10
    with pytest.raises(DataError, match="data_batch_3"):
        load(DataOptions(name="cifar10", root=tmp_path), seed=0)


def test_broken_files_are_named(tmp_path: Path) -> None:
    file = cifar10(tmp_path) / "test_batch"
    whole = file.read_bytes()
    options = DataOptions(name="cifar10", root=tmp_path)
    for broken in (whole[: len(whole) // 2], b"", b"not a pickle"):
        file.write_bytes(broken)
        with pytest.raises(DataError, match=r"test_batch: not a whole CIFAR file"):
            load_test(options)
    write(file, {**batch(0, "labels", 10), "labels": [10] * 20})
    with pytest.raises(DataError, match="N labels below 10"):
        load_test(options)


def test_code_in_a_batch_file_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (Path(tmp_path / "harmed"),)  # type: ignore[return-value]

    write(cifar10(tmp_path) / "test_batch", Harm())
    with pytest.raises(DataError, match="it asks for"):
        load_test(DataOptions(name="cifar10", root=tmp_path))
    assert not (tmp_path / "harmed").exists()


def test_the_official_test_batch_reads(tmp_path: Path, fastprune_data: Path) -> None:
    unpack = [sys.executable, str(fastprune_data / "unpack.py"), str(tmp_path)]
    subprocess.run([*unpack, "test_batch", "batches.meta"], check=True, timeout=300)
    test, info = load_test(DataOptions(name="cifar10", root=tmp_path, eval_batch_size=1000))
    assert info.classes[3] == "cat"
    assert (test.images, test.batches) == (10_000, 10)
    labels = torch.cat([y for _, y in test.epoch(0)])
    assert torch.bincount(labels).tolist() == [1000] * 10
    x, _ = next(test.epoch(0))
    assert x.mean().abs() < 0.05
    assert (x.std() - 1).abs() < 0.05
