"""Classes grouped by the baseline of a run."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastprune import artifact
from fastprune.config import make_config, to_yaml
from fastprune.data import DataOptions, Listing, TrainingImages, load, load_training
from fastprune.errors import ConfigError, DataError, FastpruneError, TrainingError
from fastprune.files import TEMPORARY
from fastprune.methods._grouping import Grouping, group_classes, similarity
from fastprune.run import grouping, pipeline
from fastprune.run.directory import saved_config
from fastprune.run.grouping import GROUP_COLUMNS, group_run
from fastprune.run.networks import build_network
from fastprune.run.paths import RunPaths
from fastprune.training import mean_logits

WRITTEN = ["dendrogram.png", "grouping.json", "groups.csv", "similarity.npy", "similarity.png"]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run, to be changed."""
    shutil.copytree(finished / "gradual", tmp_path / "run")
    return tmp_path / "run"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_files_say_what_the_baseline_finds_alike(finished: Path, tmp_path: Path) -> None:
    path, out = finished / "gradual", tmp_path / "new/out"
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    found = group_run(path, "covariance", out, quiet=True)

    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert names(out) == WRITTEN == sorted(file.name for file in found.files)
    # The training images in another order, whose means differ in the last bits.
    config = saved_config(path)
    plain = config.data.model_copy(update={"augment": False})
    model, _ = build_network(config.model, 10, seed=1)
    artifact.restore(model, artifact.load_state(RunPaths(path).baseline))
    splits = load(plain, config.seed)
    means = mean_logits(model, splits.train, splits.info.classes, device="cpu")
    matrix = np.load(out / "similarity.npy")
    np.testing.assert_allclose(matrix, similarity(means.values, "covariance"), atol=1e-5)
    assert matrix.dtype == np.float64
    assert found.images == tuple(means.images.tolist())
    assert sum(found.images) == 96

    stored = Grouping.from_json(json.loads((out / "grouping.json").read_text()))
    assert stored == found.grouping == group_classes(matrix, splits.info.classes, "covariance")
    assert stored.similarity == "covariance"
    for picture in ("similarity.png", "dendrogram.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_for_each_device(tmp_path: Path) -> None:
    logits = np.array([[9.0, 0, 0, 4], [0, 8, 6, 0], [0, 5, 7, 1], [3, 0, 0, 6]])
    alike = similarity(logits)
    found = group_classes(alike, ("plane", "cat, tabby", "dog", "ship"), "cosine")
    files = grouping.write_grouping(RunPaths(tmp_path), found, alike)

    assert files[-1] == tmp_path / "grouping.json"
    with (tmp_path / "groups.csv").open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    assert tuple(header) == GROUP_COLUMNS == ("devices", "device", "classes", "names")
    assert rows == [
        ["2", "0", "0 3", "plane; ship"],
        ["2", "1", "1 2", "cat, tabby; dog"],
        ["3", "0", "0", "plane"],
        ["3", "1", "1 2", "cat, tabby; dog"],
        ["3", "2", "3", "ship"],
        ["4", "0", "0", "plane"],
        ["4", "1", "1", "cat, tabby"],
        ["4", "2", "2", "dog"],
        ["4", "3", "3", "ship"],
    ]


def test_they_go_to_the_run_and_are_its_own(run: Path) -> None:
    group_run(run, quiet=True)
    again = {name: (run / name).read_bytes() for name in WRITTEN}
    group_run(run, quiet=True)

    assert {name: (run / name).read_bytes() for name in WRITTEN} == again
    assert not list(run.rglob(f"{TEMPORARY}*"))
    # A run goes on beside them, and one that begins anew removes them.
    config = saved_config(run)
    pipeline.run(config, run, quiet=True)
    assert set(WRITTEN) <= set(names(run))
    pipeline.run(config, run, fresh=True, until="baseline", quiet=True)
    assert not set(WRITTEN) & set(names(run))


def test_a_run_with_a_baseline_alone_is_grouped(run: Path, tmp_path: Path) -> None:
    for stage in ("plan", "prune", "finetune", "report"):
        RunPaths(run).record_file(stage).unlink()
    whole = group_run(run, out=tmp_path / "out", quiet=True)

    assert whole.to_dict()["groups"]["2"] == [list(g) for g in whole.grouping.groups(2)]
    assert whole.to_dict()["run"] == str(run)


def refused(run: Path, out: Path, kind: str = "cosine") -> str:
    with pytest.raises(FastpruneError) as caught:
        group_run(run, kind, out, quiet=True)
    assert isinstance(caught.value, ConfigError | DataError | TrainingError)
    assert not out.exists() or out.is_file()
    return str(caught.value)


def test_what_has_no_trained_baseline_is_refused(
    finished: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "was never trained" in refused(finished / "slimming", out)
    assert "not a run directory" in refused(tmp_path, out)
    assert "there is no such folder" in refused(tmp_path / "none", out)
    (run / "baseline.safetensors").write_bytes(b"other")
    assert "baseline.safetensors: missing or damaged" in refused(run, out)
    (run / "baseline.safetensors").unlink()
    assert "baseline.safetensors: missing or damaged" in refused(run, out)
    RunPaths(run).record_file("baseline").unlink()
    command = f"fastprune run {run}/config.yaml --out {run} --until baseline"
    assert refused(run, out) == f"{run}: its baseline is not done; it goes on by: {command}"


def test_bad_arguments_are_refused_before_anything_is_computed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "load_training", None)
    path, out = finished / "gradual", tmp_path / "out"
    assert "unknown kind 'cosin'; did you mean 'cosine'?" in refused(path, out, "cosin")
    out.touch()
    assert f"--out {out}: is a file" in refused(path, out)


def test_a_folder_that_cannot_be_written_is_named(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/out: cannot write there: Not a directory"):
        group_run(finished / "gradual", out=tmp_path / "file/out", quiet=True)


def test_a_class_without_training_images_is_named(tmp_path: Path, finished: Path) -> None:
    config = saved_config(finished / "gradual").model_dump(mode="json")
    config["data"] |= {"train_limit": 9, "batch_size": 9}
    pipeline.run(make_config(config), tmp_path / "run", until="baseline", quiet=True)

    said = refused(tmp_path / "run", tmp_path / "out")
    assert said.startswith("training images: no images of class ")


def test_images_are_normalised_as_the_baselines_were(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved_config(run).model_dump(mode="json")
    wanted = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    config["model"]["normalization"] = wanted
    (run / "config.yaml").write_text(to_yaml(make_config(config)))
    seen = []

    def watched(options: DataOptions, seed: int, teller: Any) -> TrainingImages:
        seen.append(load_training(options, seed, teller))
        return seen[0]

    monkeypatch.setattr(grouping, "load_training", watched)
    group_run(run, out=tmp_path / "out", quiet=True)
    assert seen[0].info.mean == wanted["mean"]
    assert seen[0].info.std == wanted["std"]


def test_other_images_than_the_runs_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*given: Any) -> TrainingImages:
        now = {"train": Listing(files=3, content="now", times="now")}
        return load_training(*given)._replace(listings=now)

    then = {"train": {"files": 2, "content": "then", "times": "then"}}
    (run / "images.json").write_text(json.dumps(then))
    monkeypatch.setattr(grouping, "load_training", changed)
    assert "the train images changed since the run began" in refused(run, tmp_path / "out")


def test_one_class_is_nothing_to_group(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def single(*given: Any) -> TrainingImages:
        found = load_training(*given)
        return found._replace(info=replace(found.info, num_classes=1, classes=("all",)))

    monkeypatch.setattr(grouping, "load_training", single)
    assert "its dataset has one class" in refused(run, tmp_path / "out")


def test_the_array_is_one_that_numpy_reads_without_pickle(finished: Path, tmp_path: Path) -> None:
    group_run(finished / "gradual", out=tmp_path, quiet=True)
    content = BytesIO((tmp_path / "similarity.npy").read_bytes())
    matrix = np.load(content, allow_pickle=False)

    assert matrix.shape == (10, 10)
    assert not content.read()
