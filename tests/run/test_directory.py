from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from fastprune.config import RunConfig, make_config
from fastprune.errors import ConfigError, DataError
from fastprune.files import TEMPORARY, write_json
from fastprune.run.directory import open_directory, saved_config


def config(seed: int = 0) -> RunConfig:
    return make_config(
        {
            "model": {"name": "resnet20_cifar", "weights": "a.pt"},
            "data": {"name": "digits"},
            "method": "one_shot",
            "prune": {"budget": {"macs": 0.5}},
            "seed": seed,
        }
    )


def test_a_stage_stands_while_inputs_and_files_are_the_same(tmp_path: Path) -> None:
    with open_directory(tmp_path / "a", config()) as directory:
        assert directory.finished("plan", "inputs") == (None, None)
        directory.plan.write_text("{}")
        record = directory.finish("plan", "inputs", {"n": (1, 2)}, (directory.plan,), 1.5)

        assert record.results == {"n": [1, 2]}
        assert directory.finished("plan", "inputs") == (record, None)
        assert directory.finished("plan", "others") == (None, "its inputs have changed")
        directory.plan.write_text("{ }")
        assert directory.finished("plan", "inputs") == (None, "plan.json is damaged")
        directory.plan.unlink()
        assert directory.finished("plan", "inputs") == (None, "plan.json is missing")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"stage": "plan"}', {"results": None}, {"results": {}}, {"digest": None}],
)
def test_a_damaged_or_edited_record_is_told_from_none(tmp_path: Path, content: Any) -> None:
    with open_directory(tmp_path, config()) as directory:
        directory.finish("plan", "inputs", {"width": 3}, (), 1)
        file = directory.record_file("plan")
        whole = json.loads(file.read_text())
        file.write_text(content if isinstance(content, str) else json.dumps(whole | content))

        assert directory.finished("plan", "inputs") == (None, "its record is unreadable")


def test_times_do_not_enter_a_records_digest(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        slow = directory.finish("plan", "inputs", {}, (), 9)
        quick = directory.finish("plan", "inputs", {}, (), 1)

        assert slow.digest == quick.digest


def test_times_of_all_processes_add_up_and_kills_are_counted(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        directory.work("plan", "inputs")
        directory.leave("plan", 3.0)
        # This one is killed: it leaves nothing.
        directory.work("plan", "inputs")
        directory.work("plan", "inputs")
        record = directory.finish("plan", "inputs", {}, (), 2.0)
        assert (record.seconds, record.kills) == (5.0, 1)
        assert directory.finished("plan", "inputs") == (record, None)

        directory.work("plan", "others")
        record = directory.finish("plan", "others", {}, (), 2.0)
        assert (record.seconds, record.kills) == (2.0, 0)


def test_checkpoints_of_other_inputs_are_thrown_away(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        work = directory.work("baseline", "inputs")
        (work / "last.pt").write_text("a")
        assert (directory.work("baseline", "inputs") / "last.pt").is_file()
        assert not (directory.work("baseline", "others") / "last.pt").exists()


def test_the_configuration_and_the_environment_are_written_down(tmp_path: Path) -> None:
    with open_directory(tmp_path / "deep" / "a", config()):
        pass

    assert saved_config(tmp_path / "deep" / "a") == config()
    assert "torch" in json.loads((tmp_path / "deep/a/environment.json").read_text())["packages"]


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        directory.finish("baseline", "inputs", {}, (), 1)

    with (
        pytest.raises(ConfigError, match=r"\(seed: 0 there, 1 now\); use --fresh"),
        open_directory(tmp_path, config(seed=1)),
    ):
        pass
    with open_directory(tmp_path, config(seed=1), fresh=True):
        pass
    assert saved_config(tmp_path).seed == 1


def test_a_run_that_made_nothing_gives_way_to_a_mended_configuration(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        directory.work("baseline", "inputs")

    with open_directory(tmp_path, config(seed=1)):
        assert saved_config(tmp_path).seed == 1


def refused(path: Path, stage: str | None = None) -> None:
    def fail() -> None:
        with open_directory(path, config()) as directory:
            directory.work("baseline", "inputs")
            if stage is not None:
                directory.finish(stage, "inputs", {}, (), 1)
            raise DataError("no images")

    with pytest.raises(DataError, match="no images"):
        fail()


def test_a_run_that_is_refused_before_it_made_anything_leaves_nothing(tmp_path: Path) -> None:
    refused(tmp_path / "deep" / "a")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "there").mkdir()
    refused(tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []
    refused(tmp_path / "there" / "deeper" / "a")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_run_that_is_refused_later_keeps_what_it_made(tmp_path: Path) -> None:
    refused(tmp_path / "a", "baseline")
    assert saved_config(tmp_path / "a") == config()
    refused(tmp_path / "a")
    with open_directory(tmp_path / "a", config()) as directory:
        assert directory.finished("baseline", "inputs")[0] is not None


def test_a_lock_that_a_refused_run_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = []

    def removed_before(stream: IO[str], how: int) -> None:
        if not locked:
            (tmp_path / "lock").unlink()
        fcntl.lockf(stream, how)
        locked.append(os.fstat(stream.fileno()).st_ino)

    monkeypatch.setattr("fastprune.run.lock.fcntl", SimpleNamespace(**vars(fcntl)))
    monkeypatch.setattr("fastprune.run.lock.fcntl.lockf", removed_before)
    with open_directory(tmp_path, config()):
        assert len(locked) == 2
        assert locked[1] == (tmp_path / "lock").stat().st_ino


@pytest.mark.parametrize("name", ["work/baseline/last.pt", "stages/plan.json", "plan.json"])
def test_a_run_that_made_something_does_not_give_way(tmp_path: Path, name: str) -> None:
    with open_directory(tmp_path, config()) as directory:
        directory.work("baseline", "inputs")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")

    with (
        pytest.raises(ConfigError, match="another configuration"),
        open_directory(tmp_path, config(seed=1)),
    ):
        pass
    assert (tmp_path / name).is_file()


def test_fresh_removes_what_a_run_left_and_nothing_else(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        directory.plan.write_text("{}")
        directory.finish("plan", "inputs", {}, (directory.plan,), 1)
        (directory.work("plan", "inputs") / "a").write_text("a")
    (tmp_path / "notes.txt").write_text("mine")

    with open_directory(tmp_path, config(), fresh=True) as directory:
        assert directory.finished("plan", "inputs") == (None, None)
        assert not directory.plan.exists()
        assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")

    with (
        pytest.raises(ConfigError, match=r"not a run directory and not empty .*thesis\.tex"),
        open_directory(tmp_path, config(), fresh=fresh),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")

    with pytest.raises(ConfigError, match="is a file"), open_directory(tmp_path / "a", config()):
        pass


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}1-config.yaml").write_text("mod")

    with open_directory(tmp_path, config()):
        assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_a_damaged_configuration_is_said(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        directory.finish("baseline", "inputs", {}, (), 1)
    (tmp_path / "config.yaml").write_text("model: [")

    with (
        pytest.raises(ConfigError, match="unreadable; use --fresh"),
        open_directory(tmp_path, config()),
    ):
        pass


OPEN = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_directory import config
from fastprune.run.directory import open_directory
with open_directory(Path({path!r}), config()):
    if {child}:
        # A data loader's worker, which outlives the process that is killed.
        import os
        if os.fork() == 0:
            print("open", flush=True)
            time.sleep(30)
            os._exit(0)
    else:
        print("open", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("child", [False, True])
def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path: Path, child: bool) -> None:
    program = OPEN.format(tests=os.path.dirname(__file__), path=str(tmp_path), child=child)
    first = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with (
            pytest.raises(ConfigError, match=rf"another run .*\(process {first.pid}\)"),
            open_directory(tmp_path, config()),
        ):
            pass
        first.kill()
        first.wait()
        with open_directory(tmp_path, config()) as directory:
            assert directory.path == tmp_path
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_how_images_are_read_may_change_and_which_may_not(tmp_path: Path) -> None:
    with open_directory(tmp_path, config()) as directory:
        write_json(directory.plan, {})
    lenient = {"max_bad_images": 3, "workers": 1, "cache": False, "pipeline": "torchvision"}
    changed = config().data.model_copy(update=lenient)
    wanted = config().model_copy(update={"data": changed})

    with open_directory(tmp_path, wanted) as directory:
        assert directory.plan.exists()

    assert saved_config(tmp_path) == wanted
    other = config().model_copy(
        update={"data": config().data.model_copy(update={"batch_size": 7})}
    )
    with pytest.raises(ConfigError, match=r"data\.batch_size"), open_directory(tmp_path, other):
        pass
