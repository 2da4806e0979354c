"""Files that would run code when they are read: each is refused, or made anew, and none runs."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mutations import TINY, Assets
from remains import differences
from tiny_runs import CONFIGS
from typer.testing import CliRunner

from fastprune.cli import app
from fastprune.training import checkpoint


class Hostile:
    """Makes a file when it is unpickled.

    Args:
        mark: the file.
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def saved(content: Any, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def forms(mark: Path, state: dict[str, Any]) -> dict[str, bytes]:
    """The same trick in every form that a weights file has."""
    return {
        "plain pickle": pickle.dumps(Hostile(mark)),
        "torch": saved({"state_dict": state, "best": Hostile(mark)}),
        "torch before 1.6": saved({**state, "x": Hostile(mark)}, zipped=False),
        "numpy": _array(mark),
    }


def _array(mark: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Hostile(mark)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def test_the_trick_works(mark: Path) -> None:
    for form, content in forms(mark, {}).items():
        mark.unlink(missing_ok=True)
        if form == "numpy":
            np.load(io.BytesIO(content), allow_pickle=True)
        else:
            load = pickle.loads if form == "plain pickle" else _trusting
            load(content)
        assert mark.exists(), form


def _trusting(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors", "bin"])
def test_weights_that_would_run_code_are_refused(
    ending: str, assets: Assets, mark: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    for form, content in forms(mark, assets.state).items():
        file = tmp_path / f"weights.{ending}"
        file.write_bytes(content)
        config = tmp_path / "given.yaml"
        given = CONFIGS["one_shot"] | {"baseline": None}
        given |= {"model": {"name": TINY, "weights": str(file)}}
        config.write_text(yaml.safe_dump(given))
        for words in (
            ("evaluate", TINY, "--weights", file, "--data", "digits"),
            ("run", config, "--out", tmp_path / "out", "--quiet"),
        ):
            assert f"weights {file}: " in refusal(*words), form
        assert not (tmp_path / "out").exists()
        assert not mark.exists()


def test_in_place_of_a_plan_or_a_configuration_it_is_refused(
    mark: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    file = tmp_path / "plan.json"
    for content in forms(mark, {}).values():
        file.write_bytes(content)
        assert str(file) in refusal("count", TINY, "--input", "3x32x32", "--plan", file)
        assert str(file) in refusal("run", file, "--out", tmp_path / "out")
    file.write_text(f'!!python/object/apply:builtins.open ["{mark}", "w"]\n')
    assert str(file) in refusal("run", file, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not mark.exists()


def test_among_the_files_of_a_run_it_does_not_run(
    assets: Assets, config: Path, mark: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(assets.half, run)
    content = saved({"identity": "x", "model": Hostile(mark)})
    # With the checksum that a checkpoint has, as whoever made it could have put there.
    marked = b"sha256:" + hashlib.sha256(content).hexdigest().encode()
    forged = content[:-2] + len(marked).to_bytes(2, "little") + marked
    for file in (run / "work/baseline").glob("*.pt"):
        file.write_bytes(forged)
    with pytest.raises(checkpoint.CheckpointError, match="written by another version"):
        checkpoint.read(run / "work/baseline/last.pt")
    for file in [*run.rglob("*.json"), *run.glob("*.safetensors")]:
        file.write_bytes(pickle.dumps(Hostile(mark)))
    result = CliRunner().invoke(app, ["run", str(config), "--out", str(run), "--quiet"])

    assert result.exit_code == 0, result.output
    assert differences(run, assets.run) == []
    assert not mark.exists()
