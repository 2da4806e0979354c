"""What the tests of runs on several ranks do on each of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fastprune import distributed
from fastprune.cli import app
from fastprune.config import make_config
from fastprune.errors import DataError
from fastprune.run import pipeline
from fastprune.run.lock import check_shared
from fastprune.training import trainer


def run(given: dict[str, Any], folder: str, until: str = "report") -> dict[str, Any]:
    return pipeline.run(make_config(given), Path(folder), until=until, quiet=True)


def command(arguments: list[str], fails: str = "", on: int = 1) -> dict[str, Any]:
    """The command line as torchrun calls it; on one rank its first training fails somehow."""
    if fails and os.environ["RANK"] == str(on):

        def failing(*_: Any, **__: Any) -> None:
            if fails == "data":
                raise DataError("data: one rank's own trouble")
            if fails == "bug":
                raise ZeroDivisionError("one rank's own bug")
            if fails == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            until = time.monotonic() + 60
            while not distributed._told(distributed._ranks) and time.monotonic() < until:
                time.sleep(0.1)
            os._exit(3)

        trainer.Run = failing  # type: ignore[assignment,misc]
    result = CliRunner().invoke(app, arguments)
    bug = None if isinstance(result.exception, SystemExit) else repr(result.exception)
    return {"code": result.exit_code, "out": result.stdout, "err": result.stderr, "bug": bug}


def apart(folder: str) -> None:
    """Ranks after the first see another folder under the same name."""
    mine = Path(folder) / str(distributed.rank())
    mine.mkdir()

    class Elsewhere(type(mine)):  # type: ignore[misc]
        def __truediv__(self, name: str) -> Path:
            return mine / name

    check_shared(Elsewhere(folder))
