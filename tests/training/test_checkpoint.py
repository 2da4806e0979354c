from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from fastprune.errors import CheckpointError
from fastprune.training import checkpoint


def state(number: int) -> dict[str, Any]:
    return {"epoch": number, "weights": torch.arange(100.0) + number, "none": None, "l": [1.5]}


def test_a_checkpoint_is_read_back_by_us_and_by_torch(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "x.pt", state(3))
    for found in (
        checkpoint.read(tmp_path / "x.pt"),
        torch.load(tmp_path / "x.pt", weights_only=True),
    ):
        assert found["epoch"] == 3
        assert torch.equal(found["weights"], state(3)["weights"])
        assert found["none"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    checkpoint.write(path, state(1))
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"x\.pt: "):
            checkpoint.read(path)
    for length in (0, 1, 70, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut off"):
            checkpoint.read(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(tmp_path / "nowhere.pt")


def test_the_newest_whole_one_is_loaded_and_the_broken_one_told_of(tmp_path: Path) -> None:
    said: list[str] = []

    def newest() -> dict[str, Any] | None:
        return checkpoint.load_newest(tmp_path, "cpu", said.append)

    assert newest() is None
    for number in (1, 2, 3):
        checkpoint.save_rotating(tmp_path, state(number))
    assert newest()["epoch"] == 3  # type: ignore[index]
    assert said == []
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:-200])
    assert newest()["epoch"] == 2  # type: ignore[index]
    assert len(said) == 1
    assert "last.pt: cut off" in said[0]
    assert "going on from previous.pt" in said[0]
    # The next one does not push the whole one out.
    checkpoint.save_rotating(tmp_path, state(4))
    assert newest()["epoch"] == 4  # type: ignore[index]
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert newest() is None
    assert "going on from the beginning" in said[-1]


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_rotating(tmp_path, state(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_rotating(tmp_path, state(2))
    monkeypatch.undo()
    found = checkpoint.load_newest(tmp_path, "cpu", pytest.fail)
    assert found is not None
    assert found["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["previous.pt"]


def test_a_checkpoint_is_not_put_together_in_memory(tmp_path: Path) -> None:
    large = {"weights": torch.ones(4_000_000)}
    checkpoint.write(tmp_path / "x.pt", {})
    for work in (
        lambda: checkpoint.write(tmp_path / "x.pt", large),
        lambda: checkpoint.read(tmp_path / "x.pt"),
    ):
        tracemalloc.start()
        try:
            work()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # Tensors themselves are not counted.
        assert most < 4_000_000
