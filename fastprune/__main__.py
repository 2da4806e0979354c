"""``python -m fastprune``: the command line, under torchrun too."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from fastprune.cli import app


def main() -> None:
    """Runs the command line and exits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is no UTF-8 must not end a run that only names it. In JSON it is right.
        sys.stdout.reconfigure(errors="backslashreplace")
    main_process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Forked workers have the handler too; they are ended by this signal and say nothing.
        if os.getpid() != main_process:
            os._exit(128 + number)
        raise KeyboardInterrupt

    # Schedulers and containers end what runs by SIGTERM: it is told of as Ctrl-C is.
    signal.signal(signal.SIGTERM, interrupt)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        app(prog_name="fastprune")
    else:
        _end(_exit_code())


def _exit_code() -> int:
    try:
        app(prog_name="fastprune")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Ends this process, one of several, here and now.

    Threads of gloo may hold tensors for as long as there is a network that was trained on several
    ranks, and let go of them while Python shuts down, which aborts a process that was done.
    """
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
