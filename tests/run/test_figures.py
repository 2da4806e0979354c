"""The figures of a run, drawn again from what it holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastprune.config import make_config
from fastprune.errors import CheckpointError, ConfigError, FastpruneError
from fastprune.files import TEMPORARY
from fastprune.methods import MethodContext, MethodResult
from fastprune.methods._states import StateRecord, read_states, write_states
from fastprune.run import pipeline, pruning
from fastprune.run.figures import draw_run, state_drawings
from fastprune.run.paths import RunPaths


def state(number: int, strengths: tuple[tuple[float, float], ...] = ()) -> StateRecord:
    left = 100 - 10 * number
    return StateRecord(
        state=number,
        remaining_weights=left,
        prunable_weights=100,
        channels=24 - number,
        full_channels=24,
        macs=1000 * left,
        params=10 * left,
        widths={"stem": 8 - number},
        validation_top1=90.0,
        cut_top1=None,
        penalised_norm=None,
        best_validation_top1=91.0,
        test_top1=None,
        seconds=1.0,
        strengths=strengths,
    )


TINY: dict[str, Any] = {
    "model": {"name": "fastprune.testing.methods:TinyResidual"},
    "data": {"name": "digits", "train_limit": 96, "test_limit": 40, "batch_size": 32},
    "prune": {"budget": {"macs": 0.5}},
    "threads": 1,
    "device": "cpu",
}


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


@pytest.mark.parametrize("name", ["gradual", "slimming", "colony"])
def test_figures_are_those_that_the_run_made(finished: Path, tmp_path: Path, name: str) -> None:
    drawn = draw_run(finished / name, tmp_path / "out")

    own = sorted(file.name for file in (finished / name).glob("*.png"))
    assert sorted(names(drawn)) == sorted([*own, "training.png"])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names(drawn))
    for figure in own:
        assert (tmp_path / "out" / figure).read_bytes() == (finished / name / figure).read_bytes()


def test_figures_go_to_the_run_where_no_folder_is_given(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "gradual", run)
    drawn = draw_run(run)
    again = [file.read_bytes() for file in drawn]

    assert drawn == [run / "training.png", run / "channels.png"]
    draw_run(run)
    assert [file.read_bytes() for file in drawn] == again
    assert not list(run.rglob(f"{TEMPORARY}*"))


def test_a_search_under_way_is_drawn_as_far_as_it_is(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "colony", run)
    for stage in ("plan", "prune", "finetune", "report"):
        RunPaths(run).record_file(stage).unlink()
    trials = run / "work/plan/trials.jsonl"
    trials.write_bytes(trials.read_bytes()[:-20])
    drawn = draw_run(run, tmp_path / "out")

    # The plan beside the results is of another time than the search.
    assert names(drawn) == ["training.png", "search.png"]
    whole = (finished / "colony/search.png").read_bytes()
    assert (tmp_path / "out/search.png").read_bytes() != whole


def test_states_are_drawn_once_there_are_some(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "gradual", run)
    three = ["states.png", "state_channels.png", "penalty.png"]
    write_states(run / "states.jsonl", [])
    assert not set(three) & set(names(draw_run(run)))
    write_states(run / "states.jsonl", [state(0), state(1)])
    assert names(draw_run(run))[2:] == three[:2]
    write_states(run / "states.jsonl", [state(0), state(1, ((0.0, 0.1), (1.0, 0.2)))])
    assert names(draw_run(run))[2:] == three


def test_states_of_a_network_without_groups_are_drawn(tmp_path: Path) -> None:
    # As of a ticket where prune.keep has all channels, and single weights go.
    drawings = state_drawings([state(0), state(1)], {}, RunPaths(tmp_path))
    for file, draw in drawings:
        draw(file)
    assert names([file for file, _ in drawings]) == ["states.png"]


def test_states_of_a_run_under_way_are_the_methods_own(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "gradual", run)
    # Left by an earlier plan.
    write_states(run / "states.jsonl", [state(0)])
    RunPaths(run).record_file("plan").unlink()
    assert names(draw_run(run)) == ["training.png"]
    write_states(run / "work/plan/states.jsonl", [state(0)])
    assert names(draw_run(run)) == ["training.png", "states.png", "state_channels.png"]


def test_a_run_keeps_the_states_of_its_method_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_shot = pruning.methods.get("one_shot")

    def build(context: MethodContext, options: Any) -> MethodResult:
        found = one_shot.build(context, options)
        file = context.directory / "states.jsonl"
        write_states(file, [state(0, ((0.0, 0.1),)), state(1)])
        return replace(found, files=(file,))

    config = make_config(TINY | {"method": "one_shot", "baseline": {"epochs": 1, "lr": 0.05}})
    lottery = SimpleNamespace(get=lambda name: SimpleNamespace(build=build))
    monkeypatch.setattr(pruning, "methods", lottery)
    pipeline.run(config, tmp_path / "run", until="plan", quiet=True)

    run = RunPaths(tmp_path / "run")
    assert read_states(run.states) == (state(0, ((0.0, 0.1),)), state(1))
    drawn = draw_run(run.path, tmp_path / "out")
    assert names(drawn)[1:] == ["channels.png", "states.png", "state_channels.png", "penalty.png"]
    for file in drawn[2:]:
        assert file.read_bytes() == (run.path / file.name).read_bytes()

    monkeypatch.undo()
    other = make_config(config.model_dump(mode="json") | {"prune": {"budget": {"macs": 0.6}}})
    pipeline.run(other, run.path, fresh_search=True, until="plan", quiet=True)
    assert not [file for file in run.of_methods if file.exists()]


def test_a_run_that_trained_nothing_yet_has_nothing_to_draw(
    finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "gradual/config.yaml", tmp_path / "run")

    with pytest.raises(ConfigError, match="holds nothing to draw yet"):
        draw_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("plan.json", "{}", "plan.json: missing or damaged"),
        ("graph.json", None, "graph.json: missing or damaged"),
        ("trials.jsonl", "{}\n", "trials.jsonl: line 1: not a trial"),
        ("states.jsonl", json.dumps(state(1).to_dict()) + "\n", "line 1: expected state 0"),
        ("work/baseline/metrics.jsonl", "{}\n", "metrics.jsonl: line 1: not an epoch"),
    ],
)
def test_what_is_damaged_is_named_and_nothing_drawn(
    finished: Path, tmp_path: Path, file: str, content: str | None, expected: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "colony", run)
    (run / file).unlink(missing_ok=True)
    if content is not None:
        (run / file).write_text(content)

    with pytest.raises((CheckpointError, ConfigError), match=expected):
        draw_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FastpruneError, match=r"file/out: cannot write there: Not a directory"):
        draw_run(finished / "gradual", tmp_path / "file/out")
