"""Runs side by side: the table, its files, and what is left out."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastprune.errors import ConfigError
from fastprune.files import TEMPORARY
from fastprune.methods._states import StateRecord, write_states
from fastprune.run.compare import Comparison, compare, print_comparison
from fastprune.run.compared_run import COLUMNS
from fastprune.run.paths import RunPaths
from fastprune.run.stages import stored_record, write_record

STATE = StateRecord(
    state=0,
    remaining_weights=100,
    prunable_weights=100,
    channels=24,
    full_channels=24,
    macs=87632,
    params=1506,
    widths={"stem": 8, "conv1": 8},
    validation_top1=90.0,
    cut_top1=None,
    penalised_norm=None,
    best_validation_top1=None,
    test_top1=None,
    seconds=1.0,
    strengths=(),
)


def report_of(run: Path) -> Any:
    return json.loads((run / "report.json").read_text())


def copied(finished: Path, name: str, to: Path) -> Path:
    shutil.copytree(finished / name, to)
    return to


def test_the_csv_has_these_columns_and_what_the_reports_say(
    finished: Path, tmp_path: Path
) -> None:
    compare([finished / "gradual", finished / "slimming"], tmp_path)
    lines = (tmp_path / "comparison.csv").read_text().splitlines()
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    report = report_of(finished / "gradual")

    assert lines[0] == (
        "name,method,variant,network,dataset,seed,top1_before,top1_after,macs,macs_share,params,"
        "params_share,channels,channels_share,remaining_weights,states,seconds"
    )
    assert rows[0] == {
        "name": "gradual",
        "method": "one_shot",
        "variant": "",
        "network": "fastprune.testing.methods:TinyResidual",
        "dataset": "digits",
        "seed": "0",
        "top1_before": str(report["accuracy"]["baseline"]["top1"]),
        "top1_after": str(report["accuracy"]["finetuned"]["top1"]),
        "macs": "43250",
        "macs_share": str(round(43250 / 87632, 6)),
        "params": "767",
        "params_share": str(round(767 / 1506, 6)),
        "channels": "16",
        "channels_share": str(round(16 / 24, 6)),
        "remaining_weights": "",
        "states": "",
        "seconds": str(round(sum(report["seconds"].values()), 3)),
    }
    assert rows[1]["network"] == "resnet20_cifar (depth=8)"
    # Nothing was trained before the method did.
    trained = report_of(finished / "slimming")["accuracy"]["trained_by_method"]["top1"]
    assert float(rows[1]["top1_before"]) == trained


def test_json_holds_the_rows_and_the_notes(finished: Path, tmp_path: Path) -> None:
    found = compare([finished / "slimming", finished / "gradual"], tmp_path)
    stored = json.loads((tmp_path / "comparison.json").read_text())

    assert stored == json.loads(json.dumps(found.to_dict()))
    assert [run["name"] for run in stored["runs"]] == ["slimming", "gradual"]
    assert set(stored["runs"][0]) == {*COLUMNS, "path", "by_state"}
    assert stored["notes"] == [
        "the runs are of 2 networks: resnet20_cifar (depth=8), "
        "fastprune.testing.methods:TinyResidual"
    ]
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        f"comparison.{kind}" for kind in ("csv", "json", "png")
    ]


def test_states_are_counted_and_given_as_shares(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, "gradual", tmp_path / "imp")
    later = replace(
        STATE,
        state=1,
        remaining_weights=80,
        channels=12,
        macs=43816,
        params=753,
        best_validation_top1=95.0,
        test_top1=94.0,
    )
    write_states(run / "states.jsonl", [STATE, later])
    (found,) = compare([run], tmp_path / "out").runs

    assert (found.states, found.remaining_weights) == (2, 0.8)
    first, second = found.by_state
    assert (first.test_top1, first.validation_top1) == (None, 90.0)
    assert (first.macs, first.params, first.channels) == (1, 1, 1)
    assert (second.macs, second.params, second.channels) == (0.5, 0.5, 0.5)
    assert (second.test_top1, second.validation_top1) == (94.0, 95.0)


def test_damaged_states_are_noted_and_the_run_compared(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, "gradual", tmp_path / "imp")
    (run / "states.jsonl").write_text("{}\n")
    found = compare([run], tmp_path / "out")

    assert found.runs[0].states is None
    (note,) = found.notes
    assert note.startswith(f"compared without its states: {run}/states.jsonl: line 1: ")


def test_a_run_given_twice_is_compared_once_and_where_it_came_first(
    finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(finished / "gradual")
    given = [finished / "gradual", finished / "colony", tmp_path / "link", finished / "gradual/"]
    found = compare(given, tmp_path)

    assert [run.name for run in found.runs] == ["gradual", "colony"]
    assert found.notes == ()


def test_runs_of_one_name_are_told_apart_by_their_folders(finished: Path, tmp_path: Path) -> None:
    places = [tmp_path / "a/x/imp", tmp_path / "b/x/imp", tmp_path / "b/imp", tmp_path / "other"]
    found = compare([copied(finished, "gradual", place) for place in places], tmp_path / "out")

    assert [run.name for run in found.runs] == ["a/x/imp", "b/x/imp", "b/imp", "other"]
    assert found.notes == (
        "several runs are called 'imp', and shown with the folders they lie in",
    )


def test_the_variant_is_what_the_method_noted(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, "gradual", tmp_path / "run")
    rewritten(run, {"notes": {"variant": "rsst", "criterion": "l1"}})
    assert compare([run], tmp_path).runs[0].variant == "rsst"
    rewritten(run, {"notes": {"criterion": "l1"}})
    assert compare([run], tmp_path).runs[0].variant == "l1"


def rewritten(run: Path, changes: dict[str, Any]) -> None:
    """Puts other content into a report, as if the run had written it."""
    from fastprune.files import sha256_of

    content = {key: value for key, value in (report_of(run) | changes).items() if value != "none"}
    (run / "report.json").write_text(json.dumps(content))
    altered(run, "report", files={"report.json": sha256_of(run / "report.json")})


def altered(run: Path, stage: str, **changes: Any) -> None:
    """Lets the record of a stage say something else, as if the run had written it."""
    file = RunPaths(run).record_file(stage)
    record = stored_record(file)
    assert record is not None
    write_record(file, replace(record, **changes))


def test_what_cannot_be_compared_is_left_out_a_line_each(finished: Path, tmp_path: Path) -> None:
    unfinished = copied(finished, "gradual", tmp_path / "un finished")
    for stage in ("finetune", "report"):
        RunPaths(unfinished).record_file(stage).unlink()
    searching = copied(finished, "colony", tmp_path / "searching")
    RunPaths(searching).record_file("plan").unlink()
    planned = copied(finished, "gradual", tmp_path / "planned")
    altered(planned, "plan", results={"digest": "another"})
    edited = copied(finished, "gradual", tmp_path / "edited")
    (edited / "report.json").write_text("{}")
    stale = copied(finished, "gradual", tmp_path / "stale")
    accuracy = report_of(stale)["accuracy"] | {"finetuned": None}
    rewritten(stale, {"accuracy": accuracy})
    old = copied(finished, "gradual", tmp_path / "old")
    rewritten(old, {"notes": "none"})
    broken = copied(finished, "gradual", tmp_path / "broken")
    (broken / "config.yaml").write_text("model: [")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    unusable = [unfinished, searching, planned, edited, stale, old, broken]
    given = [*unusable, *(tmp_path / name for name in ("folder", "file", "none"))]
    expected = [
        f"{unfinished}: not finished, finetune is next; it goes on by: "
        f"fastprune run '{unfinished}/config.yaml' --out '{unfinished}'",
        f"{searching}: not finished, plan is next; ",
        f"{planned}: not finished, prune is next; ",
        f"{edited}/report.json: damaged, or of another run",
        f"{stale}/report.json: of an earlier plan",
        f"{old}: of another version of fastprune: its report has no 'notes'",
        f"{broken}/config.yaml: unreadable",
        f"{tmp_path}/folder: not a run directory: it holds no config.yaml",
        f"{tmp_path}/file: is a file; expected a run directory",
        f"{tmp_path}/none: there is no such folder; expected a run directory",
    ]
    found = compare([*given[:4], finished / "gradual", *given[4:]], tmp_path / "out")
    with pytest.raises(ConfigError) as caught:
        compare(given, tmp_path / "nothing")

    assert [run.name for run in found.runs] == ["gradual"]
    for note, problem, start in zip(found.notes, caught.value.problems, expected, strict=True):
        assert problem.startswith(start)
        assert note == f"left out: {problem}"
        assert "\n" not in note
    assert not (tmp_path / "nothing").exists()


def test_runs_are_left_as_they_are(finished: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    compare([finished / "gradual", finished / "colony"], tmp_path)

    assert {file: file.stat().st_mtime_ns for file in finished.rglob("*")} == before


def test_a_name_of_odd_letters_is_written_as_it_can_be(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a,\n[red]$x$\xff"))
    found = compare([copied(finished, "gradual", odd)], tmp_path / "out")
    print_comparison(found)

    assert found.runs[0].name == r"a,\n[red]$x$\udcff"
    rows = list(csv.DictReader((tmp_path / "out/comparison.csv").open()))
    assert [row["name"] for row in rows] == [found.runs[0].name]
    assert found.runs[0].name in capsys.readouterr().out


@pytest.mark.parametrize("inside", ["out", "out/comparison.csv/x"])
def test_a_folder_that_cannot_be_written_is_named(
    finished: Path, tmp_path: Path, inside: str
) -> None:
    (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside).touch()

    with pytest.raises(ConfigError, match=r"--out .*/out: cannot write there: "):
        compare([finished / "gradual"], tmp_path / "out")
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_the_table_has_a_row_a_run_however_wide(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare([finished / "gradual", finished / "slimming"], tmp_path)
    first = replace(found.runs[0], name="n" * 200, variant="rsst", states=20)
    first = replace(first, remaining_weights=0.01153, top1_before=None, top1_after=91.234)
    print_comparison(Comparison((first, found.runs[1]), (), found.files))
    shown = capsys.readouterr().out.splitlines()

    (row,) = (line for line in shown if "n" * 200 in line)
    cells = re.split(r" {2,}", row.strip())
    network = "fastprune.testing.methods:TinyResidual"
    assert cells[1:5] == ["one_shot rsst", network, "digits", "0"]
    # Nothing before.
    assert cells[5:8] == ["91.23", "43,250 (49.4%)", "767 (50.9%)"]
    assert cells[8:11] == ["16 (66.7%)", "1.153%", "20"]
    assert sum("resnet20_cifar (depth=8)" in line for line in shown) == 1
    assert shown[-1] == "saved: " + ", ".join(
        f"{tmp_path}/comparison.{kind}" for kind in ("csv", "json", "png")
    )


def test_a_narrow_terminal_gets_what_all_runs_share_above_the_table(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = compare([finished / "gradual", finished / "colony"], tmp_path)
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "100")
    print_comparison(found)
    narrow = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    network = "network fastprune.testing.methods:TinyResidual"
    assert narrow[0].startswith(f"all runs: {network}, dataset digits, seed 0")
    assert "states" not in "".join(narrow)
    assert all(len(line) <= 100 for line in narrow[1:-1])
    assert "43,250 (49.4%)" in "".join(narrow)
    monkeypatch.setenv("COLUMNS", "300")
    print_comparison(found)
    assert "all runs" not in capsys.readouterr().out
