"""Finished runs, a server of processes, and a small disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from disks import Disk
from fork_server import Server
from mutations import Assets, prepared
from tiny_runs import CONFIGS
from typer.testing import CliRunner

from fastprune.cli import app


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


@pytest.fixture(scope="package")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Whole things, to be copied and changed."""
    torch.set_num_threads(1)
    return prepared(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of ``assets.run``."""
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(CONFIGS["one_shot"]))
    return file


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = Disk(folder)
    try:
        made.mount("size=64k")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {error}")
    yield made
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Calls a command that has to be refused, by one line, and gives the line."""

    def call(*words: Any) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        said = result.stderr.removesuffix("\n")
        assert (result.exit_code, type(result.exception)) == (2, SystemExit), result.exception
        assert said.startswith("fastprune: error: ")
        assert "\n" not in said
        return said.removeprefix("fastprune: error: ")

    return call
