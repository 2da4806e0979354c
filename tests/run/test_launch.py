"""``--gpus``: what it refuses, and what it hands on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed import run as torchrun

from fastprune import __main__ as command
from fastprune.cli.running import _without_gpus
from fastprune.config import RunConfig, make_config
from fastprune.errors import ConfigError
from fastprune.run import launch
from fastprune.run.lock import locked


def config(device: str) -> RunConfig:
    given: dict[str, Any] = {
        "model": {"name": "resnet20_cifar"},
        "data": {"name": "digits"},
        "method": "one_shot",
        "prune": {"budget": {"macs": 0.5}},
        "baseline": {"epochs": 1},
        "device": device,
    }
    return make_config(given)


@pytest.mark.parametrize(("there", "known"), [(0, "there is no GPU"), (4, "there are 4 GPUs")])
def test_more_ranks_than_gpus_are_refused(
    there: int, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ConfigError, match=f"^--gpus: got 8, but {known} here; device=cpu"):
        launch.check_ranks(8, config("auto"))
    launch.check_ranks(8, config("cpu"))
    if there:
        launch.check_ranks(4, config("auto"))


def test_ranks_of_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun has begun these processes already"):
        launch.check_ranks(2, config("cpu"))


def test_ranks_are_given_all_but_their_number() -> None:
    given = ["run", "a.yaml", "--gpus", "8", "data.root=--gpus", "--out", "x", "--gpus=2"]
    assert _without_gpus(given) == ["run", "a.yaml", "data.root=--gpus", "--out", "x"]


@pytest.mark.parametrize(("threads", "each"), [(None, "2"), (3, "3")])
def test_torchrun_is_told_the_threads_and_has_nothing_to_warn_of(
    threads: int | None, each: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torchrun, "run", begun.append)
    assert launch.launch(4, ["run", "a.yaml"], threads) == 0
    (given,) = begun
    assert (given.nproc_per_node, given.training_script) == ("4", "fastprune")
    assert given.training_script_args == ["run", "a.yaml"]
    assert environment["OMP_NUM_THREADS"] == each
    for name in ("torch.distributed.run", "torch.distributed.elastic.agent.server.api"):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(
    ("ended", "code"),
    [(None, 0), (SystemExit(2), 2), (SystemExit(), 0), (ZeroDivisionError("a bug"), 1)],
)
def test_a_rank_ends_before_python_shuts_down(
    ended: BaseException | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Threads of gloo might abort it then."""
    codes: list[int] = []

    def app(**_: Any) -> None:
        print("said", end="")
        if ended is not None:
            raise ended

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(command, "app", app)
    monkeypatch.setattr(os, "_exit", codes.append)
    try:
        command.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert codes == [code]
    out, err = capfd.readouterr()
    assert out == "said"
    assert ("ZeroDivisionError: a bug" in err) == (code == 1)


def test_nothing_is_left_running_where_torchrun_is_killed(tmp_path: Path) -> None:
    given = config("cpu").model_dump(mode="json")
    given["baseline"] = {"epochs": 1000, "checkpoint_every": 0}
    file, folder, said = tmp_path / "a.yaml", tmp_path / "run", tmp_path / "said"
    file.write_text(yaml.safe_dump(given))
    begin = [sys.executable, "-m", "fastprune", "run", str(file), "threads=1", "--quiet"]
    with said.open("w") as stream:
        agent = subprocess.Popen([*begin, "--out", str(folder), "--gpus", "2"], stderr=stream)
    try:
        until = time.monotonic() + 60
        while not (folder / "work" / "baseline" / "last.pt").is_file():
            assert agent.poll() is None, said.read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        ranks = [Path(f"/proc/{pid}") for pid in children.read_text().split()]
        assert len(ranks) == 2
    finally:
        agent.kill()
        agent.wait()
    until = time.monotonic() + 20
    while any(_runs(rank) for rank in ranks):
        assert time.monotonic() < until
        time.sleep(0.05)
    (line,) = said.read_text().splitlines()
    assert line.endswith("the same command goes on from here")
    # Nobody holds the folder any more.
    with locked(folder / "lock"):
        pass


def _runs(process: Path) -> bool:
    """Whether it is there and not merely waiting to be asked how it ended."""
    try:
        return (process / "stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
