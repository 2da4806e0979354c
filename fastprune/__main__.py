"""``python -m fastprune``: the command line, under torchrun too."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType

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
    app(prog_name="fastprune")


if __name__ == "__main__":
    main()
